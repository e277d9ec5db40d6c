"""A store as the sessions that ask see it: nobody else's blocks, however many there are."""

from __future__ import annotations

from dataclasses import replace

import torch

from cmr.kernels.reference._own_blocks import own_blocks, put
from cmr.kernels.reference.attention import NEG_INF
from cmr.retrieval.ask import Ask, Searched
from cmr.retrieval.choice import Choice

COLUMNS = ("session", "positions", "token_ids", "relevance", "created")
LINKS = ("successor", "predecessor")
WORTH, LEAST = 2, 256
"""A store is looked at in part where it holds so many times the own blocks, and so many in all."""


class OwnSlots:
    """The blocks of some sessions of a store, beside each other in the order of their slots.

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
        places = torch.full((store.high_water + 1,), -1)
        places[slots] = torch.arange(len(slots))
        for name in LINKS:
            setattr(self, name, places[getattr(store, name).index_select(0, slots)])

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
        batch, tokens, width = query.shape
        if out is None:
            out = query.new_empty(batch, tokens, last - first, dtype=torch.float32)
        out.fill_(NEG_INF)
        for rows, own in own_blocks(self.session[first:last], sessions):
            # The rows of a session ask as one: its blocks are read once.
            asked, at = query[rows].view(1, -1, width), self.slots[first + own][None]
            found = self._store.maxima_at(asked, sessions[rows[:1]], at)
            put(out, rows, own, found.view(len(rows), tokens, -1))
        return out

    def maxima_at(
        self, query: torch.Tensor, sessions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """The same of some slots only."""
        return self._store.maxima_at(query, sessions, self._in_store(slots))

    def states(self, slots: torch.Tensor) -> torch.Tensor:
        """Index vectors of slots."""
        return self._store.states(self._in_store(slots))

    def narrowed(self, ask: Ask) -> Ask:
        """The ask with those of its maxima that are known already and are of these blocks."""
        known = None if ask.known is None else ask.known.index_select(2, self.slots)
        return replace(ask, known=known)

    def widened(self, choice: Choice) -> Choice:
        """A choice of these blocks as one of the store's."""
        return choice._replace(table=self._in_store(choice.table))

    def _in_store(self, slots: torch.Tensor) -> torch.Tensor:
        return torch.where(slots < 0, slots, self.slots[slots.clamp(min=0)])


def own_slots(ask: Ask, store: Searched) -> OwnSlots | None:
    """What the sessions of an ask have of a store; None where looking at all of it is as good.

    On a CPU alone: elsewhere the number of blocks would have to come from the device, and the
    kernels pass the others' blocks by.
    """
    if store.device.type != "cpu" or store.high_water < LEAST:
        return None
    # A row without a session has the number that empty slots have: it may see nothing.
    asking = ask.sessions[ask.sessions >= 0]
    slots = torch.isin(store.session[: store.high_water], asking).nonzero()[:, 0]
    worth = 0 < WORTH * len(slots) <= store.high_water
    return OwnSlots(store, slots) if worth else None
