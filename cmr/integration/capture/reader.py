"""Reading a text of any length, window by window, into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from cmr.config import CMRConfig
from cmr.errors import AttachError, UnknownSessionError
from cmr.integration.capture.block_scorer import BlockScorer, Piece
from cmr.integration.capture.lasting import lasting
from cmr.integration.capture.window import LocalWindow
from cmr.integration.core import Core
from cmr.integration.decoder.adapter import entering_states, with_states
from cmr.integration.decoder.partial_pass import stop_before
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.hooks.training import checkpoints
from cmr.integration.reweave.recall import Recall
from cmr.retrieval import Ask

Progress = Callable[[int, int], None]
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class ReadReport:
    """What one `read` did.

    Attributes:
        tokens: tokens read, padding not counted.
        blocks: blocks stored.
        seconds: wall time.
    """

    tokens: int
    blocks: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens read a second."""
        return self.tokens / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class Rows:
    """The texts of a batch, without padding, packed to the left.

    Attributes:
        token_ids: `[batch, longest]`.
        lengths: tokens of each row.
        keep: `[batch, longest]` bool, False for tokens that must never be stored; None: all may.
    """

    token_ids: torch.Tensor
    lengths: tuple[int, ...]
    keep: torch.Tensor | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.token_ids.shape[1]

    @classmethod
    def pack(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        vocabulary: int,
        keep: torch.Tensor | None = None,
    ) -> Rows:
        """Checks a batch and packs it.

        Args:
            input_ids: `[tokens]` or `[batch, tokens]` integers.
            attention_mask: the same shape, 0 for padding; None: no padding.
            vocabulary: number of token ids of the model.
            keep: bool, the same shape, False for tokens that are read and must never be stored.

        Raises:
            TypeError: when `input_ids` is no integer tensor, the mask no tensor, or `keep` no
                bool tensor.
            ValueError: for an empty text, an id outside the vocabulary, or a mask of another shape.
        """
        kind = getattr(input_ids, "dtype", type(input_ids).__name__)
        if kind not in INTEGERS:
            raise TypeError(f"input_ids must be an integer tensor of token ids, got {kind}")
        ids = input_ids[None] if input_ids.ndim == 1 else input_ids
        if ids.ndim != 2:
            raise ValueError(
                f"input_ids must be [tokens] or [batch, tokens], got {tuple(input_ids.shape)}"
            )
        ids = ids.long()
        mask = _like(ids, "attention_mask", attention_mask)
        stored = _like(ids, "keep", keep)
        if keep is not None and stored.dtype != torch.bool:
            # 0 and 1 could be meant either way round; what must not be stored must not be guessed.
            raise TypeError(f"keep must be a bool tensor, True = may be stored, got {stored.dtype}")
        rows = [row[real.bool()] for row, real in zip(ids, mask, strict=True)]
        lengths = tuple(len(row) for row in rows)
        if not lengths or min(lengths) == 0:
            empty = lengths.index(0) if lengths else 0
            raise ValueError(f"row {empty} of the text is empty: there is nothing to read")
        require_known(torch.cat(rows), vocabulary)
        packed = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if keep is None:
            return cls(packed, lengths)
        flags = [row[real.bool()] for row, real in zip(stored, mask, strict=True)]
        return cls(packed, lengths, torch.nn.utils.rnn.pad_sequence(flags, batch_first=True))


def require_known(ids: torch.Tensor, vocabulary: int) -> None:
    """Raises `ValueError` unless all token ids are ones of the model; there must be some."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"token ids must be 0..{vocabulary - 1} for this model, got {low}..{high}: "
            "was the text tokenised with another model's tokenizer?"
        )


def _like(ids: torch.Tensor, name: str, given: torch.Tensor | None) -> torch.Tensor:
    """A mask of the shape of `ids`, on its device; ones where none was given."""
    if given is None:
        return torch.ones_like(ids)
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {type(given).__name__}")
    given = given[None] if given.ndim == 1 else given
    if given.shape != ids.shape:
        raise ValueError(
            f"{name} must have the shape of input_ids {tuple(ids.shape)}, got {tuple(given.shape)}"
        )
    return given.to(ids.device)


Fresh = dict[int, tuple[torch.Tensor, torch.Tensor | None]]
"""Keys and values of new tokens by layer."""


class _Text:
    """How far the reading of a text has come.

    Args:
        rows: the texts.
        asking: session number of each row, where pieces recall; None: they do not.
        window: the cache that it goes through, and the keys and values of its newest tokens.
        scorer: scores its blocks, whatever is set for others meanwhile: which layers run for a
            piece depends on it.

    Attributes:
        start: column of the next piece.
        query: `[batch, tokens, hidden]` the end of the piece before, as it is indexed.
        before: `[batch, hidden]` state in front of the head of the last token so far, where the
            scorer needs it.
    """

    def __init__(
        self,
        rows: Rows,
        asking: Sequence[int] | None,
        window: tuple[DynamicCache, Fresh],
        scorer: BlockScorer,
    ) -> None:
        self.rows, self.asking, self.scorer = rows, asking, scorer
        self.cache, self.fresh = window
        self.start = 0
        self.query: torch.Tensor | None = None
        self.before: torch.Tensor | None = None


class Reader:
    """Runs the decoder over a text in chunks, each with some left context still in its cache.

    Args:
        core: the memory's store and settings.
        config: its configuration.
        stepper: lends the layers what a piece recalls.
    """

    def __init__(self, core: Core, config: CMRConfig, stepper: Stepper) -> None:
        self.core, self.stepper = core, stepper
        self.adapter, self.writer = core.adapter, core.writer
        self.sinks, self.block = config.memory.sinks, config.memory.block_size
        self.left_context = min(config.memory.left_context, config.window // 2)
        chunk = config.window - self.left_context
        self.chunk = max(chunk // self.block, 1) * self.block if chunk >= self.block else chunk
        self.query_tokens = config.retrieval.query_tokens
        self.state_layers, self.kv_layers = (
            core.layout.state_layers,
            frozenset(core.layout.kv_layers),
        )
        self.index_layer = core.layout.index_layer
        self._last = max([self.index_layer, *self.kv_layers, *self.state_layers])

    @lasting()
    def read(
        self,
        rows: Rows,
        sessions: Sequence[int],
        progress: Progress | None = None,
        recall: bool = False,
    ) -> ReadReport:
        """Read and store.

        Args:
            rows: the texts.
            sessions: session number of each row.
            progress: called with tokens done and tokens in all.
            recall: let each piece recall, asked for by the end of the piece before it, from what
                lies behind its left context. Otherwise the forwards are the model's own.

        Raises:
            AttachError: the model is being trained with gradient checkpointing.
        """
        if checkpoints(self.adapter):
            raise AttachError(
                "a text is read through a window, and a model that is trained with gradient "
                "checkpointing gives its layers no cache: call model.eval() for reading"
            )
        started = time.perf_counter()
        asking = sessions if recall else None
        text = _Text(rows, asking, self._window(rows), self.core.scorer)
        done = blocks = 0
        while text.start < rows.longest:
            with self.stepper.alone():  # between two windows others have their turn
                self._require_alive(sessions, done)
                piece = self._piece(text)
                blocks += self.writer.write(sessions=sessions, **piece)
            done += sum(stop - start for start, stop in piece["valid"])
            if progress is not None:
                progress(done, sum(rows.lengths))
        return ReadReport(sum(rows.lengths), blocks, time.perf_counter() - started)

    def _require_alive(self, sessions: Sequence[int], done: int) -> None:
        """Raises where a session, or the memory itself, came to an end while a text is read."""
        if not self.stepper.attached:
            raise AttachError(f"the memory was detached while a text was read: {done} tokens of it "
                              "are stored")  # fmt: skip
        if not self.core.table.alive(sessions):
            raise UnknownSessionError(
                f"a session was ended while a text was read into it, after {done} tokens: what was "
                "stored of them went with it, and the rest is not stored"
            )

    def _window(self, rows: Rows) -> tuple[DynamicCache, Fresh]:
        """The cache that a text goes through, and the keys and values that came last."""
        fresh: Fresh = {}

        def take(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
            if layer in self.kv_layers:
                fresh[layer] = (keys.detach(), values.detach())

        window = LocalWindow(
            window=self.left_context,
            sinks=self.sinks,
            block=self.block,
            turn=self.adapter.turn_forward,
            padding=[0] * len(rows.lengths),
            on_new=take,
        )
        cache = DynamicCache(config=self.adapter.config)
        return window.adopt(cache, self.adapter.depth), fresh

    def _piece(self, text: _Text) -> dict[str, Any]:
        """What `BlockWriter.write` takes of the next piece, as the model came by it."""
        rows, start, scorer = text.rows, text.start, text.scorer
        device = self.adapter.input_device
        batch = len(rows.lengths)
        ids = rows.token_ids[:, start : start + self.chunk].to(device)
        stop = start + ids.shape[1]
        lengths = torch.tensor(rows.lengths, device=device)
        mask = None
        if min(rows.lengths) < stop:
            mask = (torch.arange(stop, device=device) < lengths[:, None]).long()
        positions = self._positions(start, ids.shape[1], device).expand(batch, -1)
        found = None
        if text.query is not None and text.asking is not None:
            found = self._search(text.query, text.asking)
        keep = None if rows.keep is None else rows.keep[:, start:stop].to(device)
        keep = self.writer.kept(ids, keep)
        # No graph is made in inference mode.
        with torch.inference_mode(False) if scorer.needs_gradient else nullcontext():
            with self.stepper.lending(found, positions, ids):
                states, final = self._forward(ids, mask, positions, text.cache, scorer)
            source = states[self.index_layer]
            index = source.detach()
            if start == 0:  # the attention sink's state is no content: it must match nothing
                sink = torch.zeros(1, dtype=torch.int64, device=index.device)
                index = index.index_fill(1, sink, 0.0)
            real = torch.arange(start, stop, device=device) < lengths[:, None]
            piece = Piece(
                token_ids=ids,
                positions=positions,
                index=index,
                mask=(real if keep is None else real & keep).to(index.device),
                first=start == 0,
                before=text.before,
                final=final,
                source=source if scorer.needs_gradient else None,
            )
            relevance = scorer.of_piece(piece)
            if final is not None:
                text.before = final[:, -1].detach()
            if scorer.needs_gradient:
                _cut(text.cache)
        layers: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = dict(text.fresh)
        layers.update({n: (states[n].detach()[:, None], None) for n in self.state_layers})
        text.fresh.clear()
        text.query, text.start = index[:, -self.query_tokens :], stop
        return {
            "token_ids": ids,
            "rope_positions": positions,
            "index": index,
            "layers": layers,
            "valid": [(0, max(0, min(n, stop) - start)) for n in rows.lengths],
            "relevance": relevance,
            "keep": keep,
        }

    def _search(self, query: torch.Tensor, sessions: Sequence[int]) -> Recall | None:
        """What lies behind the left context and fits the end of the piece before."""
        retriever = self.core.retriever
        if not self.core.wants_recall(sessions, retriever):
            return None
        ends = [self.core.table.position(number) for number in sessions]
        before = torch.tensor(ends, device=query.device) - self.left_context
        ask = self.core.asked(
            Ask(states=query, mask=None, sessions=self.core.numbers(sessions), before=before)
        )
        return self.core.recall(self.core.search(ask, retriever), before, ask)

    def _positions(self, start: int, tokens: int, device: torch.device) -> torch.Tensor:
        """Rotary positions go on; absolute ones start again behind the left context."""
        if not self.adapter.has_rotary:
            start = min(start, self.left_context)
        return torch.arange(start, start + tokens, device=device)[None]

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: DynamicCache,
        scorer: BlockScorer,
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        """States that enter the wanted layers, `[batch, tokens, hidden]` each.

        Behind them, where the scorer needs it, the state in front of the head, in a graph from the
        index layer's states on if it needs that, too.
        """
        states: dict[int, torch.Tensor] = {}
        wanted = {self.index_layer, *self.state_layers}

        def keep(number: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
            def hook(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
                states[number] = entering_states(args, kwargs)
                if number != self.index_layer or not scorer.needs_gradient:
                    return None
                torch.set_grad_enabled(True)  # until the forward's own no_grad ends
                leaf = states[number] = states[number].detach().requires_grad_()
                return with_states(args, kwargs, leaf)

            return hook

        handles = [
            self.adapter.layers[n].register_forward_pre_hook(keep(n), with_kwargs=True)
            for n in wanted
        ]
        final = scorer.needs_final
        output = None
        try:
            last = self.adapter.depth if final else self._last + 1
            with torch.no_grad(), stop_before(self.adapter, last):
                output = self.adapter.decoder(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
        finally:
            for handle in handles:
                handle.remove()
        return states, output.last_hidden_state if final and output is not None else None


def _cut(cache: DynamicCache) -> None:
    """Let go of the graph that keys and values came from."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
