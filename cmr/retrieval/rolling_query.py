"""The newest tokens of a text as a query that grows: what was compared is not compared again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from cmr.kernels.reference.select import Selection
from cmr.kernels.search.query import Places, Weighing, write_query
from cmr.kernels.select import Scratch, new_scratch, new_selection
from cmr.memory.block_store import BlockStore
from cmr.retrieval.ask import Ask, QueryParts
from cmr.retrieval.choice import Choice
from cmr.retrieval.own_slots import OwnSlots, own_slots


class RollingQuery:
    """The last tokens of some rows, and how well each of them matches every stored block.

    A search after some decoding steps compares the tokens that came since the last one with all
    blocks, and all tokens with the blocks that were written since; nothing else. All tensors are
    allocated once. Sessions, `located` and `task` are those of an `Ask`.

    With a `question`, an `Ask` whose parts are known, its tokens stay and go on asking in front of
    the last ones, which are one more part: what was asked, and the answer so far.

    `narrows`: whoever searches may be given `space`, which is a part of the store.

    Attributes:
        space: what is compared: the store, or where that is much less and `narrows` what these
            sessions have of it, see `own_slots`.
        maxima: `[rows, tokens, slots]` float32 of its slots, see `block_maxima`; those of the
            question first, the last ones in no particular order, as new ones take the places of
            the oldest.
        mask: `[rows, tokens]` bool, True where there is a token that asks.
        choice: what the last search chose, in tensors that the next one may write into.
    """

    def __init__(
        self,
        rows: int,
        tokens: int,
        ring: BlockStore,
        sessions: torch.Tensor,
        located: bool = False,
        task: str | None = None,
        question: Ask | None = None,
        narrows: bool = False,
    ) -> None:
        self._ring, self.sessions = ring, sessions
        self._located, self._task, self._narrows = located, task, narrows
        like = ring.index
        # The places of the last tokens lie behind those of the question.
        self._first = 0 if question is None else question.states.shape[1]
        tokens += self._first
        # Tokens first: those of one step lie together, and one launch writes them for all rows.
        self._query = like.new_zeros(tokens, rows, like.shape[-1])
        own = own_slots(sessions, ring) if narrows else None
        self.space: BlockStore | OwnSlots = ring if own is None else own
        self.maxima = self._room_for(rows, tokens)
        self.mask = torch.zeros(rows, tokens, dtype=torch.bool, device=ring.device)
        self._ids = torch.full((rows, tokens), -1, device=ring.device)
        self._room: dict[tuple[int, int, int], tuple[Selection, Scratch]] = {}
        self.choice: Choice | None = None
        self._next = self._first
        self._seen = ring.ledger.changes
        self._parts = QueryParts.one(self._ids, self.mask)
        self._part = 0  # the number of the last tokens'
        if question is not None:
            self._keep(question)

    def add(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        token_ids: torch.Tensor | None = None,
        weighing: Weighing | None = None,
    ) -> None:
        """Take new tokens `[rows, new]` in, as of an `Ask`, and bring everything up to date.

        Of more than `tokens` the last ones count. `weighing`: of their states; None: they are
        weighed already, or as they are.
        """
        end = self.mask.shape[1]
        new, done = min(states.shape[1], end - self._first), 0
        given = [None if x is None else x[:, -new:] for x in (states, mask, token_ids)]
        self._follow()
        while done < new:  # twice where the end of the tensors lies between
            count = min(new - done, end - self._next)
            where, part = slice(self._next, self._next + count), slice(done, done + count)
            self._write(where, [None if x is None else x[:, part] for x in given], weighing)
            done += count
            self._next += count
            if self._next == end:
                self._next = self._first

    def for_kernels(self, candidates: int, run: int) -> tuple[Ask, tuple[Selection, Scratch]]:
        """What `maxsim_select` is given: the question, and tensors that are kept for it.

        They are for so many candidates, passages of `run` blocks. The next search writes over what
        the last one found.
        """
        # Slots ever written, rounded up to a power of two, so that there are few sizes of scratch.
        # What lies behind those written belongs to no session, and no row may see it.
        width = min(self._ring.slots, 1 << max(0, self._ring.high_water - 1).bit_length())
        sizes = width, candidates, run
        if sizes not in self._room:
            rows, tokens = self.mask.shape
            self._room[sizes] = (
                new_selection(self.maxima, candidates, run),
                new_scratch(self.maxima, rows, tokens, width),
            )
        return self.ask(width), self._room[sizes]

    def ask(self, slots: int | None = None) -> Ask:
        """The same as a question on its own; its tensors are views that go on changing."""
        slots = self.space.high_water if slots is None else slots
        return Ask(
            states=self._query.transpose(0, 1),
            mask=self.mask,
            sessions=self.sessions,
            token_ids=self._ids,
            task=self._task,
            located=self._located,
            known=self.maxima[:, :, :slots],
            parts=self._parts,
        )

    def settle(self, choice: Choice) -> Choice:
        """The choice in the tensors of the one before, where it has the same shape."""
        # A decoding step that was captured looks for it where it was.
        kept = self.choice
        if kept is None or not _alike(kept, choice):
            self.choice = choice
            return choice
        # Its certainty alone is not looked for again: a bias was made of it.
        kept = self.choice = kept._replace(certainty=choice.certainty)
        for old, new in zip(kept, choice, strict=True):
            if old is not None and new is not None and old is not new:
                old.copy_(new)
        return kept

    def reorder(self, rows: torch.Tensor) -> None:
        """Rows follow their beams, in place."""
        # Sessions go with their rows: each row searches its own text wherever it stands.
        rows = rows.to(self.mask.device)
        self._query.copy_(self._query.index_select(1, rows))
        for tensor in (self.maxima, self.mask, self._ids, self.sessions, *self._parts):
            tensor.copy_(tensor.index_select(0, rows))

    def select(self, rows: torch.Tensor) -> RollingQuery:
        """A query of its own of the given rows, in their order."""
        rows = rows.to(self.mask.device)
        # What a search writes into is not shared: the twin's searches must not change our choice.
        other = copy.copy(self)
        other._query = self._query.index_select(1, rows)
        for name in ("maxima", "mask", "_ids", "sessions"):
            setattr(other, name, getattr(self, name).index_select(0, rows))
        other._parts = QueryParts(*(tensor.index_select(0, rows) for tensor in self._parts))
        other._room, other.choice = {}, None
        return other

    def _keep(self, question: Ask) -> None:
        """The question's tokens, to the places in front."""
        parts, where = question.parts, slice(0, self._first)
        assert parts is not None and question.token_ids is not None
        self._part = parts.marked.shape[1]
        self._parts = QueryParts(torch.full_like(self._ids, -1), F.pad(parts.marked, (0, 1)))
        self._write(where, [question.states, parts.of >= 0, question.token_ids])
        self._parts.of[:, where] = parts.of

    def _write(self, where: slice, given: Sequence[Any], weighing: Weighing | None = None) -> None:
        """States, mask and ids of tokens to the given places, and what they match."""
        held = self._query.transpose(0, 1), self._ids, self._parts.of, self.mask
        places, (states, mask, ids) = Places(*(x[:, where] for x in held)), given
        write_query(places, states, mask, ids, self._part, weighing)
        self._compare(where, 0, self.space.high_water)

    def _follow(self) -> None:
        """Have older tokens meet the blocks that were written since; new ones meet all anyway."""
        since, self._seen = self._seen, self._ring.ledger.changes
        if since == self._seen:
            return
        changed = self._ring.ledger.changed_since(since)
        own = own_slots(self.sessions, self._ring) if self._narrows else None
        before, self.space = self.space, self._ring if own is None else own
        if own is not None and isinstance(before, OwnSlots):
            self._take_over(own, before, changed)
        elif own is not None or isinstance(before, OwnSlots):
            self.maxima = self._room_for(*self.mask.shape)
            self._compare(slice(None), 0, self.space.high_water)
        else:
            for first, last in changed:
                self._compare(slice(None), first, last)

    def _take_over(
        self, own: OwnSlots, before: OwnSlots, changed: Sequence[tuple[int, int]]
    ) -> None:
        """What was compared in the space before, and what was not."""
        at = own.places_in(before)
        for first, last in changed:
            at = at.masked_fill((own.slots >= first) & (own.slots < last), -1)
        self.maxima = self.maxima.index_select(-1, at.clamp(min=0))
        new = (at < 0).nonzero()[:, 0]
        if len(new):
            part, query = OwnSlots(self._ring, own.slots[new]), self._query.transpose(0, 1)
            self.maxima[..., new] = part.maxima(query, self.sessions, 0, len(new))

    def _room_for(self, rows: int, tokens: int) -> torch.Tensor:
        slots = self._ring.slots if self.space is self._ring else self.space.high_water
        return torch.zeros(rows, tokens, slots, device=self._ring.device)

    def _compare(self, tokens: slice, first: int, last: int) -> None:
        out = self.maxima[:, tokens, first:last]
        self.space.maxima(self._query[tokens].transpose(0, 1), self.sessions, first, last, out)


def _alike(one: Choice, other: Choice) -> bool:
    """Whether two choices are tensors of the same shapes, or none, field by field."""
    shapes = [[None if part is None else part.shape for part in choice] for choice in (one, other)]
    return shapes[0] == shapes[1]
