"""What is known of the tokens in a local window: ids, validity and index states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from cmr.integration.recall import Recall
from cmr.retrieval import RollingQuery


class WindowRecord:
    """The tokens behind the sinks of one cache, and the memory that its rows belong to.

    Chunks are kept as they came and joined only when tokens leave or a search needs them, so a
    decoding step copies nothing.

    Attributes:
        sessions: session number of each row; fixed for the life of the cache.
        writers: the rows that write to memory: the first of each group that beams or several
            returned sequences made of one input.
        padding: tokens of left padding of each row.
        behind: tokens of the first forward and of its right padding, row by row; None for none.
        recall: what the rows read at present.
        steps: decoding steps since the last prompt, one for each token.
        seen: tokens seen, sinks included.
        query: the newest tokens as the last search of a decoding step left them.
        unasked: tokens that came since then.
        located: whether the last prompt was a question in a known chat template.
        whole: whether the sinks are in the record, too: the whole text becomes memory.
    """

    def __init__(
        self,
        sessions: Sequence[int],
        writers: Sequence[int],
        padding: Sequence[int],
        sinks: int,
        behind: tuple[int, Sequence[int]] | None = None,
        whole: bool = False,
    ) -> None:
        self.sessions = list(sessions)
        self.writers = list(writers)
        self.padding = list(padding)
        self.behind = behind
        self.recall: Recall | None = None
        self.steps = 0
        self.seen = 0
        self.query: RollingQuery | None = None
        self.unasked = 0
        self.located = False
        self.whole = whole
        self._sinks = sinks
        self._left_out = self._skip = self._first = 0 if whole else sinks
        self._heads: list[dict[str, torch.Tensor]] = []
        self._chunks: list[dict[str, torch.Tensor]] = []
        self._known = 0
        # Which input each row was made of: 1, 1, 1, 2, 2, 2 for three beams of two inputs.
        self._inputs = list(accumulate(int(row in self.writers) for row in range(len(sessions))))

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowRecord:
        """The record of a copied cache. Tensors that nobody changes in place are shared."""
        other = copy.copy(self)
        rows = torch.arange(len(self.sessions))
        other._heads = [dict(chunk) for chunk in self._heads]
        other._chunks = [dict(chunk) for chunk in self._chunks]
        other.recall = None if self.recall is None else self.recall.select(rows)
        other.query = None if self.query is None else self.query.select(rows)
        return other

    def forget_recall(self) -> None:
        """Let go of what was recalled, and search anew at the next step."""
        self.recall = self.query = None
        self.steps = -1

    def append(self, **columns: torch.Tensor) -> None:
        """Take note of new tokens; every column is `[batch, tokens, ...]`."""
        tokens = next(iter(columns.values())).shape[1]
        self.seen += tokens
        self.unasked += tokens
        if self._skip:
            dropped = min(self._skip, tokens)
            self._skip -= dropped
            self._heads.append({name: column[:, :dropped] for name, column in columns.items()})
            columns = {name: column[:, dropped:] for name, column in columns.items()}
        self._chunks.append(columns)

    def tail(self, name: str, tokens: int) -> torch.Tensor:
        """The last `tokens` of a column, or as many as there are, `[batch, tokens, ...]`."""
        parts, held = [], 0
        for chunk in reversed(self._chunks):
            parts.append(chunk[name])
            held += chunk[name].shape[1]
            if held >= tokens:
                break
        return torch.cat(parts[::-1], dim=1)[:, -tokens:]

    def behind_sinks(self, tokens: int) -> torch.Tensor | None:
        """Which of the last `tokens` are neither padding nor sinks, `[batch, tokens]`; None: all.

        Right padding counts for tokens, as it does for the model.
        """
        start = self.seen - tokens
        if start >= max(self.padding, default=0) + self._sinks:
            return None
        first = torch.tensor(self.padding)[:, None] + self._sinks
        return torch.arange(start, self.seen) >= first

    @property
    def held(self) -> int:
        """Tokens in the record."""
        return sum(next(iter(chunk.values())).shape[1] for chunk in self._chunks)

    def with_sinks(self) -> bool:
        """Take the sinks in, where nothing has left yet; whether the record begins with them."""
        if not self.whole and self._first == self._sinks:
            self._chunks[:0] = self._heads
            self._left_out = self._first = 0
            self.whole = True
        return self.whole

    def repeats(self, other: WindowRecord, token_ids: torch.Tensor) -> None:
        """Take note of what is stored already, where a text begun anew goes on another's.

        Args:
            other: the record of the cache that was given up.
            token_ids: `[batch, tokens]` of the whole text begun anew.
        """
        held = other.tail("token_ids", other.held)
        there = token_ids[:, other.start : other.start + held.shape[1]].to(held.device)
        if (self.sessions, self.padding) == (other.sessions, other.padding) and held.equal(there):
            self._known = other.start

    def note(self, **columns: torch.Tensor) -> None:
        """Add columns `[batch, tokens, ...]` to the tokens of the one forward that there was."""
        (chunk,) = self._chunks
        chunk.update(columns)

    def pop(self, tokens: int) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        """Take the oldest `tokens` out.

        Returns:
            The columns, `[batch, tokens, ...]`, and for each row the half-open range in them that
            is neither padding nor, unless the whole text is wanted, one of the sinks, a row's first
            real tokens. Empty where the second number is not above the first.
        """
        names = self._chunks[0]
        joined = {n: torch.cat([c[n] for c in self._chunks], dim=1) for n in names}
        self._chunks = [{n: x[:, tokens:] for n, x in joined.items()}]
        first = [max(p + self._left_out, self._known) - self._first for p in self.padding]
        last = [tokens] * len(first)
        if self.behind is not None and self._first < self.behind[0]:
            length, padding = self.behind
            last = [tokens if p == 0 else length - p - self._first for p in padding]
        valid = [
            (min(tokens, max(0, start)), min(tokens, max(0, stop)))
            for start, stop in zip(first, last, strict=True)
        ]
        self._first += tokens
        return {n: x[:, :tokens] for n, x in joined.items()}, valid

    @property
    def start(self) -> int:
        """Column, in all that the cache has seen, of the first token in the record."""
        return self._first

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens`, as assisted decoding does with what was not accepted.

        So many decoding steps are taken back with them. A query that holds one of them is dropped;
        the next search makes it anew.
        """
        self.seen -= tokens
        self.steps -= min(tokens, max(0, self.steps))
        self.unasked -= tokens
        if self.unasked < 0:
            self.query, self.unasked = None, 0
        while tokens and self._chunks:
            held = next(iter(self._chunks[-1].values())).shape[1]
            chunk = self._chunks.pop()
            if held > tokens:
                self._chunks.append({n: x[:, : held - tokens] for n, x in chunk.items()})
            tokens -= min(held, tokens)
        if tokens:  # sinks come again
            self._skip += tokens
            head = {n: torch.cat([h[n] for h in self._heads], dim=1) for n in self._heads[0]}
            self._heads = [{n: x[:, :-tokens] for n, x in head.items()}]

    def reorder(self, rows: torch.Tensor) -> None:
        """Rows follow their beams: those of one input share its session, its first one writes."""
        self._move(rows)
        if self.query is not None:
            self.query.reorder(rows)
        if len(set(self._inputs)) > 1:  # else every row stays what it was, and no device is asked
            self._rename(rows.tolist())
            self.writers = self._writing(range(len(self._inputs)))

    def select(self, rows: torch.Tensor) -> None:
        """Become the record of these rows; who writes goes on, else another row of its input.

        Args:
            rows: `[rows]` int64 of the batch as it is, in any order and as often as wanted.
        """
        self._move(rows)
        if self.query is not None:
            self.query = self.query.select(rows)
        order, writing = rows.tolist(), set(self.writers)
        self._rename(order)
        # Rows that wrote before come first, so that they go on where any of them is left.
        ranked = sorted(range(len(order)), key=lambda row: order[row] not in writing)
        self.writers = self._writing(ranked)

    def _move(self, rows: torch.Tensor) -> None:
        for chunks in (self._heads, self._chunks):
            chunks[:] = [{n: _rows(x, rows) for n, x in c.items()} for c in chunks]
        if self.recall is not None:
            self.recall = self.recall.select(rows)

    def _rename(self, rows: list[int]) -> None:
        """What is known of each row goes with it."""
        self.sessions = [self.sessions[row] for row in rows]
        self.padding = [self.padding[row] for row in rows]
        self._inputs = [self._inputs[row] for row in rows]
        if self.behind is not None:
            tokens, padding = self.behind
            self.behind = tokens, [padding[row] for row in rows]

    def _writing(self, order: Sequence[int]) -> list[int]:
        """The first row of each input, rows taken in this order."""
        first: dict[int, int] = {}
        for row in order:
            first.setdefault(self._inputs[row], row)
        return sorted(first.values())


def _rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return x.index_select(0, rows.to(x.device))
