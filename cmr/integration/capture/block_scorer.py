"""How much each block of a text that an attached model reads is worth keeping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cmr.config import CMRConfig
from cmr.errors import ConfigError
from cmr.integration.capture.piece_scores import Piece, raw_scores
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.kernels.reference.score import pool_blocks
from cmr.memory.relevance import RelevanceScorer
from cmr.memory.running_quantiles import PlaceMeans
from cmr.memory.token_scores import token_scores

SAMPLE_BLOCKS = 4_096
"""Newest blocks that a block is compared with."""
# What learns the scale of scores: of text that is read, of text that leaves, of places in a piece.
PARTS = ("read", "leaving", "places")
NEUTRAL = 0.5
"""Relevance of a block that is not scored."""


class BlockScorer:
    """Relevance of blocks, by the configured method, calibrated while reading.

    A block's score is the mean of its tokens' raw scores, and its relevance the share of the newest
    blocks that scored lower: 0.7 means 70 %. `attention_based` looks at the index layer's attention
    within a piece, `hybrid` combines it with the variance of the index states, each calibrated
    before. `surprise` and `gradient_based` run the layers behind the stored ones as well, and the
    head. A text that leaves the window while generating is scored by the variance of its index
    states, the only thing at hand then, and compared with its own kind. With `method` None every
    block gets 0.5.

    Raises `ConfigError` where the method needs gradients and the model gives none.
    """

    def __init__(self, adapter: ModelAdapter, config: CMRConfig, layer: int) -> None:
        self._adapter, self._layer = adapter, layer
        self._block = config.memory.block_size
        self.method = config.memory.scoring
        if self.needs_gradient and _loses_gradients(adapter.model):
            raise ConfigError(
                "scoring_method='gradient_based' needs gradients, and 4-bit weights on this CPU "
                "give none (bitsandbytes lays them out for inference); another scoring_method "
                "expected, such as 'surprise'"
            )
        self._counts: dict[str, int] = {}

    @property
    def needs_final(self) -> bool:
        """Whether pieces must come with their `final` states."""
        return self.method in ("surprise", "gradient_based")

    @property
    def needs_gradient(self) -> bool:
        """Whether pieces must come with a graph from `source` to `final`."""
        return self.method == "gradient_based"

    @torch.no_grad()
    def of_piece(self, piece: Piece) -> torch.Tensor:
        """Relevance of the blocks of a piece that was read, `[batch, blocks]` float32 in [0, 1].

        Pieces of a text come in order. 0 for a block without a token that may be stored.
        """
        if self.method is None:
            return self._constant(piece.mask)
        names: tuple[str, ...] = (self.method,)
        if self.method == "hybrid":
            names = ("attention_based", "variance_based")
        return self._relevance(self._read, self.method, self.raw(piece, names), piece.mask)

    @torch.no_grad()
    def of_states(
        self, index: torch.Tensor, block_size: int, valid: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """Relevance of blocks of which only the index states are at hand.

        `index` `[batch, tokens, hidden]`, and in `valid` each row's half-open range of tokens that
        are no padding; `[batch, ceil(tokens / block_size)]` float32 in [0, 1].
        """
        if block_size != self._block:
            raise ValueError(f"block_size {self._block} expected, got {block_size}")
        if self.method is None:
            return self._constant(index[..., 0])
        at = torch.arange(index.shape[1], device=index.device)
        mask = torch.stack([(at >= start) & (at < stop) for start, stop in valid])
        name = "variance_based"
        raw = {name: token_scores(name, index, mask)}
        return self._relevance(self._leaving, f"{name}, leaving", raw, mask)

    @torch.no_grad()
    def of_scores(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Relevance of blocks whose tokens were scored by the configured method elsewhere.

        `scores` `[batch, tokens]` float32 at the index layer, before calibration, and the `mask` of
        tokens that are stored; `[batch, blocks]` float32 in [0, 1].
        """
        assert self.method is not None
        return self._relevance(self._read, self.method, {self.method: scores}, mask)

    @torch.no_grad()
    def raw(self, piece: Piece, methods: Sequence[str]) -> dict[str, torch.Tensor]:
        """Scores of a piece's tokens before calibration, `[batch, tokens]` float32 by method."""
        return raw_scores(self._adapter, self._layer, piece, methods)

    def stats(self) -> dict[str, Any]:
        """`method`, `blocks` scored by method, and `scores`: see `get_scoring_stats`, of blocks."""
        return {
            "method": self.method,
            "blocks": dict(self._counts),
            "scores": self._read.get_scoring_stats(),
        }

    def state(self) -> dict[str, torch.Tensor]:
        """What was learnt of the scale of scores, as plain tensors on the CPU by name."""
        # Where nothing was scored nothing was learnt: no part is made to say so.
        return {
            f"{part}/{key}": tensor
            for part in PARTS
            if f"_{part}" in self.__dict__
            for key, tensor in getattr(self, f"_{part}").state().items()
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave, in place of what was learnt here.

        Raises `ValueError` for what `state` cannot have given; nothing is changed then.
        """
        if not state:
            for part in PARTS:
                self.__dict__.pop(f"_{part}", None)
            return
        parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
        for name, tensor in state.items():
            part, _, rest = name.partition("/")
            if part not in parts:
                raise ValueError(f"one of {', '.join(parts)} expected, got {part!r}")
            parts[part][rest] = tensor
        read, leaving = self._fresh(self._read.scoring_method), self._fresh("variance_based")
        read.load_state(parts["read"])
        leaving.load_state(parts["leaving"])
        places = PlaceMeans.from_state(parts["places"]) if parts["places"] else PlaceMeans()
        self._read, self._leaving, self._places = read, leaving, places

    # What has been learnt is made when something is scored first: an attach does without.

    @cached_property
    def _read(self) -> RelevanceScorer:
        return self._fresh(self.method or "variance_based")

    @cached_property
    def _leaving(self) -> RelevanceScorer:
        return self._fresh("variance_based")

    @cached_property
    def _places(self) -> PlaceMeans:
        return PlaceMeans()

    def _fresh(self, method: str) -> RelevanceScorer:
        return RelevanceScorer(self._adapter.hidden, method, sample_size=SAMPLE_BLOCKS)

    def _constant(self, tokens: torch.Tensor) -> torch.Tensor:
        blocks = -(-tokens.shape[1] // self._block)
        return torch.full((len(tokens), blocks), NEUTRAL, device=tokens.device)

    def _relevance(
        self,
        scorer: RelevanceScorer,
        name: str,
        raw: Mapping[str, torch.Tensor],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """The blocks' means over the tokens that count, as quantiles of such means."""
        share = pool_blocks(mask.float(), self._block)
        held = share > 0
        # Both divide by all of a block's tokens: the quotient is the mean of those that count.
        means = {
            method: pool_blocks(scores.masked_fill(~mask, 0.0), self._block)
            / share.clamp(min=1 / self._block)
            for method, scores in raw.items()
        }
        if "attention_based" in means:
            # Tokens late in a piece have few behind them, in every text: that is taken out.
            means["attention_based"] = self._places.without(means["attention_based"], held)
        self._counts[name] = self._counts.get(name, 0) + int(held.sum())
        return scorer.calibrated(means, held, layer_idx=self._layer)


def _loses_gradients(model: nn.Module) -> bool:
    """Whether a layer of bitsandbytes would be left out of a gradient, without a word."""
    # Its 4-bit layers repack their weights on a CPU that has bfloat16 instructions (0.50), and the
    # operation that reads those has no gradient.
    return any(
        getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu"
        for module in model.modules()
    )
