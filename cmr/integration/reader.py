"""Reading a text of any length, window by window, into memory.

One window in order: the next tokens are taken (`_Text`), memory is asked with the end of the window
before where that is wanted, the decoder runs over them with some left context and the sinks still
in its cache, what it computed is finite, their blocks are scored, and `BlockWriter` stores what the
layers made of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from cmr.config import CMRConfig
from cmr.errors import AttachError, NonFiniteStateError, UnknownSessionError
from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.capture.block_writer import Captured
from cmr.integration.capture.piece_scores import Piece
from cmr.integration.capture.row_text import RowText
from cmr.integration.capture.rows import Rows
from cmr.integration.capture.turns import stored_only
from cmr.integration.core import Core
from cmr.integration.decoder.finite import Parts, all_finite, not_finite, parts_of, stored_of
from cmr.integration.decoder.partial_pass import graph_from, states_entering
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.hooks.training import checkpoints
from cmr.integration.reweave.recall import Recall
from cmr.integration.window.lasting import lasting
from cmr.integration.window.local_window import LocalWindow
from cmr.integration.window.settling import settle
from cmr.integration.window.window_layer import adopt
from cmr.kernels.upload import uploaded
from cmr.retrieval import Ask

WINDOWS_THERE = 2
"""Windows that go through a decoder on a GPU before they are looked at and stored: each look makes
the host wait, and what was not stored yet takes memory."""


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
class Known:
    """Of a single text, of which some was stored before.

    Attributes:
        text: which one it is, for its session to know it again.
        place: of the first token that is read.
        context: tokens that are read and not stored, for what comes behind them.
    """

    text: RowText
    place: int
    context: int


class _Text:
    """How far the reading of a text has come.

    Attributes:
        lengths: `[batch, 1]` tokens of the rows, on the model's device.
        start: column of the next window.
        query: `[batch, tokens, hidden]` states of the end of the window before.
        before: `[batch, hidden]` state in front of the head of the last token; None: nobody asks.
    """

    def __init__(
        self,
        rows: Rows,
        cache: DynamicCache,
        scorer: BlockScorer,
        device: torch.device,
        known: Known | None,
    ) -> None:
        # One scorer for all of a text, whatever is set for others meanwhile: which layers run for a
        # window depends on it.
        self.rows, self.cache, self.scorer, self.known = rows, cache, scorer, known
        self.final, self.gradient = scorer.needs_final, scorer.needs_gradient
        self.lengths = uploaded(torch.tensor(rows.lengths), device)[:, None]
        self.start = 0
        self.query: torch.Tensor | None = None
        self.before: torch.Tensor | None = None

    def valid(self, stop: int) -> list[tuple[int, int]]:
        """Each row's half-open range of tokens in the window that ends in front of `stop`.

        What is only read for what comes behind it is not among them.
        """
        before = 0 if self.known is None else self.known.context
        ends = [max(0, min(n, stop) - self.start) for n in self.rows.lengths]
        return [(min(end, max(0, before - self.start)), end) for end in ends]

    def kinds(self, stop: int) -> torch.Tensor | None:
        """Whose words are in the window that ends in front of `stop`; None: nobody knows."""
        if self.known is None or self.known.text.told is None:
            return None
        kinds = self.known.text.kinds(self.known.place + self.start, stop - self.start)
        return stored_only(kinds[None], self.valid(stop))


class _Window(NamedTuple):
    """Tokens that went through the decoder and are to be stored.

    Attributes:
        captured: what is to be stored, but for its relevance.
        piece: what the scores look at.
        place: column of the first token in the text.
    """

    captured: Captured
    piece: Piece
    place: int

    @property
    def numbers(self) -> list[torch.Tensor]:
        """All that has to be finite."""
        final = self.piece.final
        found = stored_of(self.captured.index, self.captured.layers)
        return found if final is None else [*found, final]


class Reader:
    """Runs the decoder over a text in windows, each with some left context still in its cache."""

    def __init__(self, core: Core, config: CMRConfig, stepper: Stepper) -> None:
        self._core, self._stepper, self._adapter = core, stepper, core.adapter
        self._sinks, self._block = config.memory.sinks, config.memory.block_size
        self._left_context = min(config.memory.left_context, config.window // 2)
        # Whole blocks, so that a block is not cut where two windows meet.
        chunk = config.window - self._left_context
        whole = max(chunk // self._block, 1) * self._block
        self._chunk = whole if chunk >= self._block else chunk
        there = self._adapter.input_device.type != "cpu"
        self._at_once = WINDOWS_THERE if there else 1
        self._query_tokens = config.retrieval.query_tokens
        self._kv_layers, self._state_layers = core.layout.kv_layers, core.layout.state_layers
        self._noted = {core.layout.index_layer, *self._state_layers}
        # No layer behind the last one that is stored has to run.
        self._last = max(*self._noted, *self._kv_layers, 0) + 1

    @lasting()
    def read(
        self,
        rows: Rows,
        sessions: Sequence[int],
        show: Callable[[int], None],
        recall: bool = False,
        known: Known | None = None,
    ) -> ReadReport:
        """Read and store, a session number a row; `show` is told how many tokens were done since.

        `known` is of a single row, what of it was stored before.

        With `recall` each window recalls, asked for by the end of the window before it, from what
        lies behind its left context. Otherwise the forwards are the model's own. Raises
        `AttachError` where the model is being trained with gradient checkpointing, and
        `NonFiniteStateError` as `Memory.read` says.
        """
        if checkpoints(self._adapter):
            raise AttachError(
                "a text is read through a window, and a model that is trained with gradient "
                "checkpointing gives its layers no cache: call model.eval() for reading"
            )
        started = time.perf_counter()
        scorer, device = self._core.scorer, self._adapter.input_device
        text = _Text(rows, self._cache(len(rows.lengths)), scorer, device, known)
        asking = sessions if recall else None
        done, blocks = 0, 0
        while text.start < rows.longest:
            # The lock is not held for all of a text: others have their turn in between.
            with self._stepper.alone():
                self._require_alive(sessions, done)
                stored = self._windows(text, sessions, asking)
            for tokens, written in stored:
                done, blocks = done + tokens, blocks + written
                show(tokens)
        return ReadReport(sum(rows.lengths), blocks, time.perf_counter() - started)

    def _require_alive(self, sessions: Sequence[int], done: int) -> None:
        """Raises where a session, or the memory itself, came to an end while a text is read."""
        if not self._stepper.attached:
            raise AttachError(f"the memory was detached while a text was read: {done} tokens of it "
                              "are stored")  # fmt: skip
        if not self._core.table.alive(sessions):
            raise UnknownSessionError(
                f"a session was ended while a text was read into it, after {done} tokens: what was "
                "stored of them went with it, and the rest is not stored"
            )

    def _cache(self, batch: int) -> DynamicCache:
        """The cache that a text goes through; keys and values to store are kept at hand in it."""
        window = LocalWindow(
            self._adapter,
            window=self._left_context,
            sinks=self._sinks,
            block=self._block,
            padding=[0] * batch,  # the rows are packed to the left
            wanted=frozenset(self._kv_layers),
        )
        # All layers let go at once, behind the forward; on a CPU each does as well by itself.
        window.deferred = self._adapter.input_device.type != "cpu"
        return adopt(DynamicCache(config=self._adapter.config), window)

    def _windows(
        self, text: _Text, sessions: Sequence[int], asking: Sequence[int] | None
    ) -> list[tuple[int, int]]:
        """Read and store the next windows; how many tokens and blocks each of them was."""
        # A window that recalls is to find the one before it, and a graph is kept for one alone.
        alone = asking is not None or text.gradient
        most, taken = 1 if alone else self._at_once, list[_Window]()
        try:
            while text.start < text.rows.longest and len(taken) < most:
                taken.append(self._window(text, sessions, asking))
        finally:
            # Also where a later one fails: those before it are stored, as each by itself would be.
            stored = self._store(text, taken, sessions) if taken else []
        return stored

    def _window(
        self, text: _Text, sessions: Sequence[int], asking: Sequence[int] | None
    ) -> _Window:
        """Read the next window, which nothing is stored of yet."""
        core, rows, start = self._core, text.rows, text.start
        core.identity.claim()
        device = text.lengths.device
        ids = uploaded(rows.token_ids[:, start : start + self._chunk], device)
        stop = start + ids.shape[1]
        positions = self._positions(start, stop, device).expand(len(ids), -1)
        found = None
        if text.query is not None and asking is not None:
            found = self._search(text.query, asking)
        keep = None if rows.keep is None else rows.keep[:, start:stop].to(device)
        keep = core.writer.kept(ids, keep)

        # The `alone` around this window takes it back, also where the forward raises.
        if found is not None:
            self._stepper.lend(found, positions, ids)
        states, final = self._forward(text, ids, stop, positions)
        source = states[core.layout.index_layer]
        index = source.detach()
        if start == 0:
            # The attention sink's state is no content, and all sinks are alike: it must match
            # nothing.
            sink = torch.zeros(1, dtype=torch.int64, device=index.device)
            index = index.index_fill(1, sink, 0.0)
        real = torch.arange(start, stop, device=device) < text.lengths
        layers: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {
            n: text.cache.layers[n].new for n in self._kv_layers
        }
        layers.update({n: (states[n].detach()[:, None], None) for n in self._state_layers})
        piece = Piece(
            token_ids=ids,
            positions=positions,
            index=index,
            mask=(real if keep is None else real & keep).to(index.device),
            first=start == 0,
            before=text.before,
            final=final,
            source=source if text.gradient else None,
        )
        captured = Captured(
            sessions=sessions,
            token_ids=ids,
            valid=text.valid(stop),
            index=index,
            layers=layers,
            rope=positions,
            keep=keep,
            kinds=text.kinds(stop),
        )
        if text.gradient:
            # The next window must not hold on to the graph of this one.
            for layer in text.cache.layers:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        if text.cache.layers[0].owner.deferred:
            settle(text.cache.layers)
        text.before = None if final is None else final[:, -1].detach()
        text.query, text.start = index[:, -self._query_tokens :], stop
        return _Window(captured, piece, start)

    def _store(
        self, text: _Text, taken: Sequence[_Window], sessions: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Score and store windows in their order; how many tokens and blocks each of them was."""
        # Ahead of the scores, which learn from what they see. The device is asked once for all.
        finite, stored = all_finite(x for window in taken for x in window.numbers), []
        for captured, piece, place in taken:
            if not finite:
                parts = parts_of(piece.index, captured.layers, {"the last layer": piece.final})
                self._require_finite(parts, piece.mask.cpu(), sessions)
                captured = replace(captured, keep=piece.mask)  # padding may be anything
            captured = replace(captured, relevance=text.scorer.of_piece(piece))
            blocks = self._write(captured, text.known, place)
            stored.append((sum(last for _, last in captured.valid), blocks))
        return stored

    def _write(self, captured: Captured, known: Known | None, start: int) -> int:
        """Store a window that begins at a column of the text, and note it where it is known."""
        core = self._core
        if known is None:
            return core.writer.write(captured)
        (session,), ((first, last),) = captured.sessions, captured.valid
        with core.journal.change():
            position = core.table.position(session) - first
            blocks = core.writer.write(captured)
            ids = captured.token_ids[0].cpu()
            at = torch.arange(len(ids))
            stored = (at >= first) & (at < last)
            if captured.keep is not None:
                stored &= captured.keep[0].cpu()
            known.text.note(core.table, session, ids, stored, known.place + start, position)
        return blocks

    def _require_finite(self, parts: Parts, stored: torch.Tensor, sessions: Sequence[int]) -> None:
        """Raises `NonFiniteStateError` where some of the tokens that are stored are not finite."""
        for name, bad in not_finite(parts, stored).items():
            row, token = bad.nonzero()[0].tolist()
            at = self._core.table.position(sessions[row])
            raise NonFiniteStateError(
                f"session {self._core.name_of(sessions[row])!r}: finite states expected, got NaN "
                f"or infinite ones of {name} at position {at + token} of its text; nothing was "
                f"stored from position {at} on"
            )

    def _search(self, query: torch.Tensor, sessions: Sequence[int]) -> Recall | None:
        """What lies behind the left context and fits the end of the window before."""
        core, retriever = self._core, self._core.retriever
        if not core.wants_recall(sessions, retriever):
            return None
        ends = [core.table.position(number) for number in sessions]
        # What the cache still holds is read there: nothing is to be read twice.
        before = torch.tensor(ends, device=query.device) - self._left_context
        ask = core.asked(
            Ask(states=query, mask=None, sessions=core.numbers(sessions), before=before), retriever
        )
        return core.recall(core.search(ask, retriever), before, ask)

    def _positions(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """Rotary positions go on; absolute ones, of which there are few, start again."""
        back = 0 if self._adapter.has_rotary else max(0, start - self._left_context)
        return torch.arange(start - back, stop - back, device=device)[None]

    def _forward(
        self, text: _Text, ids: torch.Tensor, stop: int, positions: torch.Tensor
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        """States `[batch, tokens, hidden]` that enter noted layers, and those in front of the head.

        The latter only where the scorer needs them, in a graph from the index layer on where it
        needs that.
        """
        adapter, mask = self._adapter, None
        if min(text.rows.lengths) < stop:
            mask = (torch.arange(stop, device=ids.device) < text.lengths).long()
        graph = (
            graph_from(adapter, self._core.layout.index_layer) if text.gradient else nullcontext()
        )
        output = None
        with (
            torch.no_grad(),
            graph,
            states_entering(adapter, self._noted, None if text.final else self._last) as states,
        ):
            output = adapter.decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=text.cache,
                use_cache=True,
            )
        return states, output.last_hidden_state if text.final and output is not None else None
