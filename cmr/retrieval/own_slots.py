"""A store as the sessions that ask see it: nobody else's blocks, however many there are."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence

from cmr.kernels.reference._own_blocks import own_blocks, places, put
from cmr.kernels.reference.attention import NEG_INF
from cmr.retrieval.ask import Searched
from cmr.retrieval.choice import Choice

COLUMNS = ("session", "positions", "token_ids", "relevance", "created")
LINKS = ("successor", "predecessor")
WORTH, LEAST = 2, 256
"""A store is looked at in part where it holds so many times the own blocks, and so many in all."""


class OwnSlots:
    """The blocks of some sessions of a store, beside each other, each in the order of its slots.

    A `Searched` whose slot i is slot `slots[i]` of the store. What a search says of a row depends
    on its own session's blocks alone, so it says the same here, and looks at fewer.

    Attributes:
        slots: `[n]` int64, where the store has these blocks.
    """

    session: torch.Tensor
    positions: torch.Tensor
    token_ids: torch.Tensor
    relevance: torch.Tensor
    created: torch.Tensor
    successor: torch.Tensor
    predecessor: torch.Tensor

    def __init__(self, store: Searched, slots: torch.Tensor) -> None:
        self._store, self.slots = store, slots
        self.block_size, self.device = store.block_size, store.device
        self.index, self.ledger, self.cursor = store.index, store.ledger, store.cursor
        for name in COLUMNS:
            setattr(self, name, getattr(store, name).index_select(0, slots))
        # A link leads to a block of the same session, which is here, too.
        self._places = torch.full((store.high_water + 1,), -1)
        self._places[slots] = torch.arange(len(slots))
        for name in LINKS:
            setattr(self, name, self._places[getattr(store, name).index_select(0, slots)])

    @property
    def high_water(self) -> int:
        """Slots from 0 on that have to be looked at."""
        return len(self.slots)

    def maxima(
        self,
        query: torch.Tensor,
        sessions: torch.Tensor,
        first: int,
        last: int,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `cmr.memory.tier_tensors.TierTensors`, as for the other two methods."""
        tokens = query.shape[1]
        if out is None:
            out = query.new_empty(len(query), tokens, last - first, dtype=torch.float32)
        out.fill_(NEG_INF)
        asked_by = own_blocks(self.session[first:last], sessions)
        asked_by = [(rows, own) for rows, own in asked_by if len(own)]
        if not asked_by:
            return out
        # The rows of a session ask as one: its blocks are read once. All sessions are asked about
        # in one go, filled up to the one with most rows, by one of its own, and most blocks.
        rows, own = (pad_sequence(list(part), True, -1) for part in zip(*asked_by, strict=True))
        asking = torch.where(rows < 0, rows[:, :1], rows)
        slots = torch.where(own < 0, -1, self.slots[first + own])
        found = self._store.maxima_at(query[asking].flatten(1, 2), sessions[asking[:, 0]], slots)
        for (these, where), part in zip(asked_by, found.unflatten(1, (-1, tokens)), strict=True):
            put(out, these, where, part[: len(these), :, : len(where)])
        return out

    def maxima_at(
        self, query: torch.Tensor, sessions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """The same of some slots only."""
        return self._store.maxima_at(query, sessions, self._in_store(slots))

    def states(self, slots: torch.Tensor) -> torch.Tensor:
        """Index vectors of slots."""
        return self._store.states(self._in_store(slots))

    def places_in(self, before: OwnSlots) -> torch.Tensor:
        """Where another space of the same store has each of these blocks, `[n]`; -1 for nowhere."""
        known = self.slots < len(before._places) - 1
        return before._places[torch.where(known, self.slots, -1)]

    def widened(self, choice: Choice) -> Choice:
        """A choice of these blocks as one of the store's."""
        return choice._replace(table=self._in_store(choice.table))

    def _in_store(self, slots: torch.Tensor) -> torch.Tensor:
        return torch.where(slots < 0, slots, self.slots[slots.clamp(min=0)])


def own_slots(sessions: torch.Tensor, store: Searched) -> OwnSlots | None:
    """What sessions `[rows]` have of a store; None where looking at all of it is as good.

    On a CPU alone: elsewhere the number of blocks would have to come from the device, and the
    kernels pass the others' blocks by.
    """
    if store.device.type != "cpu" or store.high_water < LEAST:
        return None
    # A row without a session has the number that empty slots have: it may see nothing.
    asking = sessions[sessions >= 0].unique()
    slots = torch.cat(places(asking, store.session[: store.high_water]))
    worth = 0 < WORTH * len(slots) <= store.high_water
    return OwnSlots(store, slots) if worth else None
