"""What is known of the tokens in a local window, and what their text recalls at present.

Tokens are counted in columns: column n is the n-th that the cache has seen, padding and sinks
included. The record holds those from `_first` on. Of a row `_gone` tokens have left behind its
sinks; without padding that is the same for all rows.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from cmr.integration.capture.columns import behind, gather
from cmr.integration.capture.row_text import RowText
from cmr.integration.capture.text_search import TextSearch

LeftLayers = dict[int, tuple[torch.Tensor, torch.Tensor]]


class WindowRecord:
    """The tokens of one cache, and the memory that its rows belong to.

    Chunks are kept as they came and joined only when tokens leave or a search needs them, so a
    decoding step copies nothing.

    Attributes:
        sessions: session number of each row; fixed for the life of the cache.
        writers: the rows that write to memory: the first of each group that beams or several
            returned sequences made of one input.
        padding: tokens of left padding of each row.
        behind: tokens of the first forward and of its right padding, row by row; None for none.
        search: what the rows recall at present, and when they search again.
        seen: tokens seen, sinks included.
        whole: whether the sinks are in the record, too: the whole text becomes memory.
        texts: of each row its text, where a `generate` has told it; None: of none.
        turn: see `Identity`; of the weights that it began with.
        left: rotated keys and values by layer that have left the window and are not stored yet, in
            their order; with each, what `go` said.
        waits: whether storing them failed, and is tried again when more leaves.
    """

    turn = 0
    POPPED = ("left", "going", "_chunks", "_first", "_gone")
    """What changes, by new objects alone, when something that left is taken out."""

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
        self.search = TextSearch()
        self.seen = 0
        self.whole = whole
        self.texts: list[RowText] | None = None
        self._sinks = sinks
        self._padded = any(padding)
        self._first = 0
        self._gone = [0] * len(padding)
        self.going: Sequence[int] | None = None
        self.left: list[tuple[LeftLayers, Sequence[int] | None]] = []
        self.waits = False
        self._chunks: list[dict[str, torch.Tensor]] = []
        # Column in front of which all of a row is stored already, see `repeats`.
        self._known = [0] * len(padding)
        # Which input each row was made of: 1, 1, 1, 2, 2, 2 for three beams of two inputs.
        self._inputs = list(accumulate(int(row in self.writers) for row in range(len(sessions))))

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowRecord:
        """The record of a copied cache. Tensors that nobody changes in place are shared."""
        other = copy.copy(self)
        other._gone = list(self._gone)
        other._chunks = [dict(chunk) for chunk in self._chunks]
        other.left = list(self.left)
        other.search = copy.deepcopy(self.search, memo)
        return other

    def of_rows(self, rows: Sequence[int]) -> WindowRecord:
        """What is known of some rows alone, with nothing of what they recall."""
        other = copy.copy(self)
        other.left, other.search = [], TextSearch()
        other.select(torch.tensor(rows))  # all else by new objects
        return other

    def append(self, **columns: torch.Tensor) -> None:
        """Take note of new tokens; every column is `[batch, tokens, ...]`."""
        tokens = next(iter(columns.values())).shape[1]
        self._chunks.append(columns)
        self.search.unasked += tokens
        # Last: a record that was interrupted here counts fewer than its cache, and is let go.
        self.seen += tokens

    def tail(self, name: str, tokens: int) -> torch.Tensor:
        """The last `tokens` of a column, or as many as there are, `[batch, tokens, ...]`."""
        tokens = min(tokens, self.held)
        parts, held = [], 0
        for chunk in reversed(self._chunks):
            parts.append(chunk[name])
            held += chunk[name].shape[1]
            if held >= tokens:
                break
        return torch.cat(parts[::-1], dim=1)[:, held - tokens :]

    def behind_sinks(self, tokens: int) -> torch.Tensor | None:
        """Which of the last `tokens` a row holds behind its sinks, `[batch, tokens]`; None: all."""
        # Right padding counts for tokens, as it does for the model.
        start = self.seen - tokens
        if not self._padded:
            if start >= self._sinks:
                return None
            behind = torch.arange(start, self.seen) >= self._sinks
            return behind.expand(len(self.padding), -1)
        held = zip(self.padding, self._gone, strict=True)
        first = torch.tensor([padding + self._sinks + gone for padding, gone in held])
        return torch.arange(start, self.seen) >= first[:, None]

    def reach(self, device: torch.device) -> int | torch.Tensor:
        """Tokens behind the sinks that are held: of each row, `[batch]`, where some are padded."""
        return torch.tensor(self.rest(), device=device) if self._padded else self.held

    @property
    def start(self) -> int:
        """Column of the first token in the record; sinks are in it where they become memory."""
        # Of padded rows all columns count: where one row has its sinks another has its text.
        return self._first if self.whole or self._padded else max(self._first, self._sinks)

    @property
    def held(self) -> int:
        """Tokens in the record."""
        return max(0, self.seen - self.start)

    def with_sinks(self) -> None:
        """Take the sinks in, where nothing has left yet; of padded rows, in those rows."""
        self.whole = self.whole or self._padded or self._first == 0

    def repeats(self, other: WindowRecord, token_ids: torch.Tensor) -> None:
        """Take note of what is stored already, where a text begun anew goes on another's.

        `other` is the record of the cache that was given up, `token_ids` `[batch, tokens]` the
        whole text begun anew.
        """
        # Where the ids differ the text was edited: it is stored again, as another text.
        held = other.tail("token_ids", other.held)
        there = token_ids[:, other.start : other.start + held.shape[1]].to(held.device)
        if (self.sessions, self.padding) == (other.sessions, other.padding) and held.equal(there):
            self._known = other._stops()

    def tell(self, texts: list[RowText]) -> None:
        """Take note of the rows' texts; what is known of their beginnings is not stored again."""
        self.texts = texts
        sinks = 0 if self.whole else self._sinks
        # A row that was over goes on with this text: what came until now is done with.
        known = (self.seen if before == sys.maxsize else before for before in self._known)
        rows = zip(self.padding, texts, known, strict=True)
        self._known = [max(padding + text.known(sinks), k) for padding, text, k in rows]

    def stored(self) -> None:
        """Take note that all that it holds is stored; what is not sure is when it leaves."""
        ends = [self.seen] * len(self.padding)
        for row, text in enumerate(self.texts or ()):
            if not text.sure:
                ends[row] = self.padding[row] + len(text.skipped)
        self._known = [max(end, known) for end, known in zip(ends, self._known, strict=True)]

    def over(self, rows: Sequence[int]) -> None:
        """Take note that nothing of these rows is to be stored any more, whatever comes."""
        known = enumerate(self._known)
        self._known = [sys.maxsize if row in rows else before for row, before in known]

    @property
    def all_stored(self) -> bool:
        """Whether nothing of what it holds is still to be stored."""
        return min(self._known) >= self.seen

    def skip(self, tokens: int) -> bool:
        """Let the oldest `tokens` go where all of them are stored already; whether they are."""
        stop = self.start + tokens
        if self._padded or min(self._known) < stop:
            return False
        self._chunks, self._first = behind(self._chunks, stop - self._first), stop
        return True

    def note(self, **columns: torch.Tensor) -> None:
        """Add columns `[batch, tokens, ...]` to the tokens of the one forward that there was."""
        (chunk,) = self._chunks
        chunk.update(columns)

    def go(self, tokens: Sequence[int]) -> None:
        """Take note how many tokens behind the sinks leave each of some padded rows next."""
        self.going = tokens

    def let_go(self, layers: LeftLayers) -> None:
        """Take note of what leaves the window, which is kept until it is stored."""
        self.left.append((layers, self.going))
        self.going = None

    def rest(self) -> list[int]:
        """How many tokens of each row may still leave."""
        return [max(0, self.seen - stop) for stop in self._stops()]

    def _stops(self) -> list[int]:
        """Column of the next token of each row to leave."""
        if not self._padded:
            return [self.start] * len(self.padding)
        rows = zip(self.padding, self._gone, strict=True)
        return [
            padding + (0 if self.whole and not gone else self._sinks + gone)
            for padding, gone in rows
        ]

    def pop(self, tokens: int) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]], list[int]]:
        """Take the oldest `tokens` out; of padded rows what `go` said, or all that is left.

        Gives the columns, `[batch, tokens, ...]`; each row's half-open range in them that is to be
        stored, neither padding nor, unless the whole text is wanted, a sink; and the place of each
        row's first token, which may be outside of them.
        """
        joined = {n: torch.cat([c[n] for c in self._chunks], dim=1) for n in self._chunks[0]}
        at = self._stops()
        if self._padded:
            columns, count, dropped = self._pop_by_row(joined, at, tokens)
        else:
            behind = self.start - self._first
            columns = {n: x[:, behind : behind + tokens] for n, x in joined.items()}
            count, dropped = [tokens] * len(at), behind + tokens
        # Copies: a view would keep what left alive, also where it is forgotten.
        self._chunks = [{n: x[:, dropped:].clone() for n, x in joined.items()}]
        self._first += dropped
        first = [padding - start for padding, start in zip(self.padding, at, strict=True)]
        return columns, self._valid(at, count), first

    def _pop_by_row(
        self, joined: dict[str, torch.Tensor], at: list[int], tokens: int
    ) -> tuple[dict[str, torch.Tensor], list[int], int]:
        """Columns of padded rows, how many count of each, and how many no row needs any more."""
        going, self.going = self.going, None
        if going is None:
            going = count = self.rest()
        else:
            sinks = [self._sinks if self.whole and not gone else 0 for gone in self._gone]
            count = [n + extra if n else 0 for n, extra in zip(going, sinks, strict=True)]
        places = torch.tensor(at)[:, None] - self._first + torch.arange(tokens)
        columns = {n: gather(x, places.clamp(0, x.shape[1] - 1)) for n, x in joined.items()}
        self._gone = [gone + n for gone, n in zip(self._gone, going, strict=True)]
        # Of rows that nothing has left the sinks stay at hand, for `with_sinks`.
        rows = zip(self.padding, self._gone, strict=True)
        needed = [padding + (self._sinks + gone if gone else 0) for padding, gone in rows]
        return columns, count, min(min(needed), self.seen) - self._first

    def _valid(self, start: list[int], tokens: list[int]) -> list[tuple[int, int]]:
        """The half-open ranges of tokens to store, of so many behind a column of each row."""
        last = tokens
        if self.behind is not None:
            length, behind = self.behind
            last = [
                n if not p or first >= length else length - p - first
                for n, p, first in zip(tokens, behind, start, strict=True)
            ]
        rows = zip(tokens, self._known, start, last, strict=True)
        return [
            (min(n, max(0, known - first)), min(n, max(0, stop))) for n, known, first, stop in rows
        ]

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens`, as assisted decoding does with what was not accepted."""
        self.seen -= tokens
        self.search.crop(tokens)
        # Others come in their place, and none of them is known.
        self._known = [min(known, self.seen) for known in self._known]
        if self.texts is not None:
            rows = zip(self.padding, self.texts, strict=True)
            self.texts = [text.cropped(max(0, self.seen - padding)) for padding, text in rows]
        while tokens and self._chunks:
            held = next(iter(self._chunks[-1].values())).shape[1]
            chunk = self._chunks.pop()
            if held > tokens:
                self._chunks.append({n: x[:, : held - tokens] for n, x in chunk.items()})
            tokens -= min(held, tokens)

    def reorder(self, rows: torch.Tensor) -> None:
        """Rows follow their beams: those of one input share its session, its first one writes."""
        self._move(rows)
        self.search.reorder(rows)
        # Beams of one input stay what they were, all of them, and no device is asked.
        if len(set(self._inputs)) > 1:
            self._rename(rows.tolist())
            self.writers = self._writing(range(len(self._inputs)))

    def select(self, rows: torch.Tensor) -> None:
        """Become the record of these rows `[rows]`, in any order and as often as wanted."""
        self._move(rows)
        self.search.select(rows)
        order, writing = rows.tolist(), set(self.writers)
        self._rename(order)
        # Rows that wrote before come first, so that they go on where any of them is left; of an
        # input whose writer is gone another row writes.
        ranked = sorted(range(len(order)), key=lambda row: order[row] not in writing)
        self.writers = self._writing(ranked)

    def _move(self, rows: torch.Tensor) -> None:
        self._chunks = [
            {n: x.index_select(0, rows.to(x.device)) for n, x in chunk.items()}
            for chunk in self._chunks
        ]

    def _rename(self, rows: list[int]) -> None:
        """What is known of each row goes with it."""
        self.sessions = [self.sessions[row] for row in rows]
        self.padding = [self.padding[row] for row in rows]
        self._gone = [self._gone[row] for row in rows]
        self._known = [self._known[row] for row in rows]
        if self.texts is not None:
            self.texts = [self.texts[row] for row in rows]
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
