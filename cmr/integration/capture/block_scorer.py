"""How much each block of a text that an attached model reads is worth keeping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cmr.config import CMRConfig
from cmr.errors import ConfigError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.kernels.reference.rotary import rotate
from cmr.kernels.reference.score import pool_blocks
from cmr.kernels.score import surprise
from cmr.memory.relevance import RelevanceScorer
from cmr.memory.running_quantiles import PlaceMeans
from cmr.memory.token_scores import gradient_times_state, token_scores

SAMPLE_BLOCKS = 4_096
"""Newest blocks that a block is compared with."""
LOGIT_BYTES = 32 << 20
"""Most bytes of logits at once."""
NEUTRAL = 0.5
"""Relevance of a block that is not scored."""


@dataclass(frozen=True)
class Piece:
    """What the reader knows of a piece of text that has just gone through the model.

    Attributes:
        token_ids: `[batch, tokens]`.
        positions: `[batch, tokens]` as the rotary embedding was given them.
        index: `[batch, tokens, hidden]` states at the index layer.
        mask: `[batch, tokens]` bool, True for tokens that are no padding and may be stored.
        first: whether the texts start with this piece.
        before: `[batch, hidden]` state in front of the head of the token before the piece; None
            unless asked for, and in the first piece.
        final: `[batch, tokens, hidden]` states in front of the head; None unless asked for.
        source: the index layer's states in the graph that `final` was computed from; None unless
            gradients were asked for.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor
    first: bool
    before: torch.Tensor | None = None
    final: torch.Tensor | None = None
    source: torch.Tensor | None = None


class BlockScorer:
    """Relevance of blocks, by the configured method, calibrated while reading.

    A block's score is the mean of its tokens' raw scores, and its relevance the share of the newest
    blocks that scored lower: 0.7 means 70 %. `attention_based` looks at the index layer's attention
    within a piece, `hybrid` combines it with the variance of the index states, each calibrated
    before. `surprise` and `gradient_based` run the layers behind the stored ones as well, and the
    head. A text that leaves the window while generating is scored by the variance of its index
    states, the only thing at hand then, and compared with its own kind.

    Args:
        adapter: the model.
        config: the settings.
        layer: the index layer, whose states the pieces hold; see `Core.index_layer`.

    Attributes:
        method: of scoring; None: every block gets 0.5 and nothing is computed.

    Raises:
        ConfigError: the method needs gradients and the model gives none.
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
        self._read = self._fresh(self.method or "variance_based")
        self._leaving = self._fresh("variance_based")
        self._places = PlaceMeans()
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

        Args:
            index: `[batch, tokens, hidden]` states at the index layer.
            block_size: tokens in a block.
            valid: each row's half-open range of tokens that are no padding.

        Returns:
            `[batch, ceil(tokens / block_size)]` float32 in [0, 1].
        """
        if block_size != self._block:
            raise ValueError(f"block_size {self._block} expected, got {block_size}")
        at = torch.arange(index.shape[1], device=index.device)
        mask = torch.stack([(at >= start) & (at < stop) for start, stop in valid])
        if self.method is None:
            return self._constant(mask)
        name = "variance_based"
        raw = {name: token_scores(name, index, mask)}
        return self._relevance(self._leaving, f"{name}, leaving", raw, mask)

    @torch.no_grad()
    def of_scores(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Relevance of blocks whose tokens were scored by the configured method elsewhere.

        Args:
            scores: `[batch, tokens]` float32 at the index layer, before calibration.
            mask: `[batch, tokens]` bool, True for tokens that are stored.

        Returns:
            `[batch, blocks]` float32 in [0, 1].
        """
        assert self.method is not None
        return self._relevance(self._read, self.method, {self.method: scores}, mask)

    @torch.no_grad()
    def raw(self, piece: Piece, methods: Sequence[str]) -> dict[str, torch.Tensor]:
        """Scores of a piece's tokens before calibration, `[batch, tokens]` float32 by method."""
        found = {}
        if "variance_based" in methods:
            found["variance_based"] = token_scores("variance_based", piece.index, piece.mask)
        if "attention_based" in methods:
            found["attention_based"] = self._attention(piece)
        if "surprise" in methods or "gradient_based" in methods:
            losses, gradients = self._losses(piece, "gradient_based" in methods)
            found["surprise"] = losses
            if gradients is not None:
                found["gradient_based"] = gradients
        return {name: found[name] for name in methods}

    def stats(self) -> dict[str, Any]:
        """`method`, `blocks` scored by method, and `scores`: see `get_scoring_stats`, of blocks."""
        return {
            "method": self.method,
            "blocks": dict(self._counts),
            "scores": self._read.get_scoring_stats(),
        }

    def state(self) -> dict[str, torch.Tensor]:
        """What was learnt of the scale of scores, as plain tensors on the CPU by name."""
        parts = {
            "read": self._read.state(),
            "leaving": self._leaving.state(),
            "places": self._places.state(),
        }
        return {f"{part}/{key}": t for part, state in parts.items() for key, t in state.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave, in place of what was learnt here.

        Raises:
            ValueError: for what `state` cannot have given; nothing is changed then.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {"read": {}, "leaving": {}, "places": {}}
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

    # -- blocks ----------------------------------------------------------------------------------

    def _fresh(self, method: str) -> RelevanceScorer:
        return RelevanceScorer(self._adapter.hidden, method, sample_size=SAMPLE_BLOCKS)

    def _constant(self, mask: torch.Tensor) -> torch.Tensor:
        blocks = -(-mask.shape[1] // self._block)
        return torch.full((len(mask), blocks), NEUTRAL, device=mask.device)

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
        means = {
            method: pool_blocks(scores.masked_fill(~mask, 0.0), self._block)
            / share.clamp(min=1 / self._block)
            for method, scores in raw.items()
        }
        if "attention_based" in means:
            means["attention_based"] = self._places.without(means["attention_based"], held)
        self._counts[name] = self._counts.get(name, 0) + int(held.sum())
        return scorer.calibrated(means, held, layer_idx=self._layer)

    # -- tokens ----------------------------------------------------------------------------------

    def _attention(self, piece: Piece) -> torch.Tensor:
        """Attention within the piece at the index layer; a text's first token, its sink, gets 0."""
        query = self._adapter.queries(self._layer, piece.index)
        key, _ = self._adapter.keys_values(self._layer, piece.index)
        if self._adapter.rotates(self._layer):
            turn = self._adapter.rotary(self._layer, piece.positions.to(piece.index.device))
            query, key = rotate(query, *turn), rotate(key, *turn)
        scale = getattr(self._adapter.attention(self._layer), "scaling", None)
        if scale is not None:  # of the logits, where it is not one over the root of the width
            query = query * (scale * query.shape[-1] ** 0.5)
        mask = piece.mask
        if piece.first:
            mask = mask.clone()
            mask[:, 0] = False
        found = token_scores("attention_based", piece.index, mask, query=query, key=key)
        return found.masked_fill(~mask, 0.0)

    def _losses(self, piece: Piece, gradients: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Each token's own loss, and |g·h| of the losses' sum at the index layer where asked for.

        The logits are computed in slices and never kept.
        """
        final = piece.final
        assert final is not None
        ids, mask = piece.token_ids.to(final.device), piece.mask.to(final.device)
        previous = None if piece.before is None else self._head(piece.before)
        batch, tokens = ids.shape
        step = max(1, LOGIT_BYTES // max(1, batch * self._vocabulary * final.element_size()))
        losses = torch.empty(batch, tokens, device=final.device)
        back = torch.zeros_like(final) if gradients else None
        for start in range(0, tokens, step):
            part = final[:, start : start + step].detach()
            if back is None:
                logits = self._head(part)
            else:
                logits, back[:, start : start + step] = self._backward(
                    part, ids[:, start + 1 : start + step + 1], mask[:, start + 1 :]
                )
            losses[:, start : start + step] = surprise(
                logits, ids[:, start : start + step], previous
            )
            previous = logits[:, -1]
        if piece.before is None:  # nothing predicts the first token
            rest = mask[:, 1:]
            losses[:, 0] = (losses[:, 1:] * rest).sum(1) / rest.sum(1).clamp(min=1)
        losses = losses.to(piece.index.device)
        if back is None:
            return losses, None
        assert piece.source is not None
        (found,) = torch.autograd.grad(final, piece.source, back)
        return losses, gradient_times_state(found, piece.source)

    def _backward(
        self, final: torch.Tensor, following: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of a slice, and the gradient of the following tokens' losses by its states."""
        following = following.clone()  # of a text made in inference mode nothing could be saved
        known = following.shape[1]
        with torch.enable_grad():
            leaf = final.requires_grad_()
            logits = self._head(leaf)
            losses = nn.functional.cross_entropy(  # flat: several times as fast on a CPU
                logits[:, :known].float().flatten(0, 1), following.flatten(), reduction="none"
            )
            (found,) = torch.autograd.grad((losses * mask[:, :known].flatten()).sum(), leaf)
        return logits.detach(), found

    @property
    def _vocabulary(self) -> int:
        return self._adapter.config.vocab_size

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of final states, as the model gives them."""
        head = self._adapter.model.get_output_embeddings()
        logits = head(states.to(head.weight.device))
        cap = getattr(self._adapter.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _loses_gradients(model: nn.Module) -> bool:
    """Whether a layer of bitsandbytes would be left out of a gradient, without a word.

    Its 4-bit layers repack their weights on a CPU that has bfloat16 instructions (0.50), and the
    operation that reads those has no gradient.
    """
    return any(
        getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu"
        for module in model.modules()
    )
