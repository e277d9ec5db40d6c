"""A layer of a `LayeredMemoryBuffer` as searches see a store: every entry is a block of one."""

from __future__ import annotations

import torch

from cmr.kernels.maxsim import block_maxima
from cmr.memory.block_store import NO_SLOT
from cmr.memory.buffer.layer_store import LayerStore
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.sessions import NO_SESSION
from cmr.memory.slot_ledger import ranges_of

TINY = 1e-12
"""A norm below counts as this one, so that a state that is all 0 stays 0."""


class EntryLedger:
    """The account of a layer's slots, as far as searches ask for it. It holds no states."""

    def __init__(self, store: LayerStore) -> None:
        # `changes` counts the refreshes that found one; behind `limit` no slot ever held an entry.
        self.store, self.changes, self.limit = store, 0, 0
        # Whose entry a slot holds, and its number; an empty one has number 0.
        self.owner = torch.full((store.slots,), NO_SESSION)
        self.number = torch.zeros(store.slots, dtype=torch.int64)
        self._tier, self._stamp = self.number.clone(), self.number.clone()
        self._version = 0

    def refresh(self) -> None:
        """Take over what changed in the layer since the last time."""
        if self.store.version == self._version:
            return
        of = self.store.columns
        self.changes += 1
        # Where an entry sinks, its state may go over into 8 bits.
        fresh = (of["created"] != self.number) | (of["tier"] != self._tier)
        # Slots that were emptied are no news: searches look at `owner` for them.
        self._stamp[fresh & (of["created"] > 0)] = self.changes
        self.owner, self.number = of["sequence"].clone(), of["created"].clone()
        self._tier, self._version = of["tier"].clone(), self.store.version
        held = (self.number > 0).nonzero()
        self.limit = max(self.limit, int(held.max()) + 1 if len(held) else 0)

    def changed_since(self, changes: int) -> list[tuple[int, int]]:
        """Half-open ranges of slots that came to hold something since `changes` was this."""
        return ranges_of((self._stamp[: self.limit] > changes).nonzero()[:, 0])


class LayerEntries:
    """The entries of one layer as they are now, see `Searched`.

    A session is a sequence, a block one entry, and there are no chains. Index vectors are float32,
    whatever the layer's data type; those of entries that are kept in 8 bits are what the codes
    stand for. They are copies: whoever keeps them keeps states that the buffer may forget. The
    ledger is to be up to date, and the clock that of the buffer.
    """

    block_size = 1

    def __init__(self, ledger: EntryLedger, clock: int) -> None:
        store, size = ledger.store, ledger.limit
        self.ledger, self.device, self.clock = ledger, store.device, clock

        def column(name: str) -> torch.Tensor:
            return store.columns[name][:size].to(self.device, copy=True)

        self.session, self.created = column("sequence"), column("created")
        self.relevance = column("relevance")
        self.positions, self.token_ids = column("position")[:, None], column("token_id")[:, None]
        self.successor = torch.full((size,), NO_SLOT, device=self.device)
        self.predecessor = self.successor  # no entry has either
        self.cursor = torch.tensor([clock], device=self.device)
        self.index = _unit_states(store, size)[:, None]

    @property
    def high_water(self) -> int:
        """Slots from 0 on that have to be looked at."""
        return self.ledger.limit

    def maxima(
        self,
        query: torch.Tensor,
        sessions: torch.Tensor,
        first: int,
        last: int,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cosine of each query token with each entry; see `TierTensors.maxima`."""
        index, positions = self.index[first:last], self.positions[first:last]
        session = self.session[first:last]
        return block_maxima(query, index, positions, None, session, sessions, out=out)

    def maxima_at(
        self, query: torch.Tensor, sessions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """The same of some entries only; see `TierTensors.maxima_at`."""
        return block_maxima(query, self.index, self.positions, None, self.session, sessions, slots)

    def states(self, slots: torch.Tensor) -> torch.Tensor:
        """Unit states of some entries, `[n, 1, hidden]` float32; `slots` are on the CPU."""
        return self.index[slots.to(self.device)]


def _unit_states(store: LayerStore, size: int) -> torch.Tensor:
    """States of the first slots, norm 1, `[size, hidden]` float32; 0 where a slot is empty."""
    slots = (store.columns["created"][:size] > 0).nonzero()[:, 0]
    states = store.states(slots).float()
    # In place, as they are a copy: a layer may be large.
    states /= torch.linalg.vector_norm(states, dim=-1, keepdim=True).clamp(min=TINY)
    if len(slots) == size:
        return states
    return states.new_zeros(size, store.hidden).index_copy_(0, slots.to(states.device), states)


class BufferEntries:
    """The layers of a buffer, seen as stores."""

    def __init__(self, buffer: LayeredMemoryBuffer) -> None:
        self._buffer = buffer
        self._ledgers: dict[int, EntryLedger] = {}

    def layer(self, layer_idx: int) -> LayerEntries | None:
        """A layer as it is now, None where it holds nothing. The buffer's lock is to be held."""
        store = self._buffer.layer(layer_idx)
        if store is None or not store.held:
            return None
        # A ledger lives as long as its layer, so that strategies see what changed since.
        ledger = self._ledgers.get(layer_idx)
        if ledger is None or ledger.store is not store:
            ledger = self._ledgers[layer_idx] = EntryLedger(store)
        ledger.refresh()
        return LayerEntries(ledger, self._buffer.clock)
