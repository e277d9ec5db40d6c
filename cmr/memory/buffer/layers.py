"""All layers of a `LayeredMemoryBuffer` together: their limits, and what makes room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from cmr.errors import ModelMismatchError
from cmr.memory.buffer.layer_store import RECENT, WORKING, LayerStore
from cmr.memory.eviction import Candidates, choose_victims


@dataclass(frozen=True)
class Limits:
    """How much is kept, and what of it; see `LayeredMemoryBuffer`."""

    max_entries_per_layer: int
    max_total_entries: int
    recent: int
    working: int
    reduce_long_term: bool
    eviction_strategy: str
    cleanup_threshold: float
    relevance_threshold: float | None

    def kept(self, size: int) -> int:
        """What stays of a full layer or tier."""
        return min(int(self.cleanup_threshold * size), size - 1)


class Picked(NamedTuple):
    """Some entries of a layer: its number, its store and their slots `[k]`."""

    layer: int
    store: LayerStore
    slots: torch.Tensor


class Layers:
    """Number to store of each layer, and the one clock of their entries.

    Attributes:
        limits: what holds for all layers.
        stores: layer number to store.
        clock: number of the newest entry ever stored.
        evicted: entries that went to make room.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stores: dict[int, LayerStore] = {}
        self.clock = self.evicted = 0

    def __len__(self) -> int:
        return sum(store.held for store in self.stores.values())

    def new_store(self, hidden: int, dtype: torch.dtype, device: torch.device) -> LayerStore:
        """An empty layer of this size."""
        of = self.limits
        slots = min(of.max_entries_per_layer, of.max_total_entries)
        full = of.recent + of.working if of.reduce_long_term else None
        with torch.inference_mode(False):  # what is made in it could not be changed outside
            return LayerStore(slots, hidden, dtype, device, full)

    def fitting(self, layer: int, states: torch.Tensor, device: torch.device) -> LayerStore:
        """The store of a layer, made on `device` where there is none.

        Raises:
            ModelMismatchError: the states are of another width or data type.
        """
        if layer not in self.stores:
            self.stores[layer] = self.new_store(states.shape[1], states.dtype, device)
        store = self.stores[layer]
        if store.hidden != states.shape[1]:
            raise ModelMismatchError(
                f"layer {layer}: hidden size {store.hidden} expected, got {states.shape[1]}"
            )
        if store.dtype != states.dtype:
            raise ModelMismatchError(
                f"layer {layer}: states of {store.dtype} expected, got {states.dtype}"
            )
        return store

    # -- writing ---------------------------------------------------------------------------------

    def write(
        self, store: LayerStore, sequence: int, states: torch.Tensor, **columns: torch.Tensor
    ) -> range:
        """Store `[k, hidden]` states, as many at a time as there is room; returns their numbers."""
        first, count, done = self.clock + 1, len(states), 0
        while done < count:
            self._make_room(store, sequence)
            part = slice(done, done + min(count - done, self._room(store)))
            done = part.stop
            store.write(
                states[part],
                sequence=sequence,
                created=torch.arange(first + part.start, first + done),
                **{name: column[part] for name, column in columns.items()},
            )
            self.clock = first + done - 1
        return range(first, first + count)

    def _room(self, store: LayerStore) -> int:
        """Entries that fit at once."""
        return min(
            store.slots - store.held,
            self.limits.max_total_entries - len(self),
            self.limits.recent - store.by_tier[RECENT],
        )

    def _make_room(self, store: LayerStore, sequence: int) -> None:
        """A place for one more entry of the sequence in the layer's first tier, at least."""
        of = self.limits
        if store.held == store.slots:
            self._evict([store], of.kept(store.slots), sequence)
        if len(self) == of.max_total_entries:
            self._evict([*self.stores.values()], of.kept(of.max_total_entries), sequence)
        if store.by_tier[RECENT] == of.recent:
            self._sink(store, RECENT, of.kept(of.recent))
            if store.by_tier[WORKING] > of.working:
                self._sink(store, WORKING, int(of.cleanup_threshold * of.working))

    def _evict(self, stores: list[LayerStore], keep: int, sequence: int) -> None:
        slots = [store.find() for store in stores]
        which = torch.arange(len(stores)).repeat_interleave(torch.tensor([*map(len, slots)]))
        columns = zip(*(s.candidates(at) for s, at in zip(stores, slots, strict=True)), strict=True)
        found = choose_victims(
            Candidates(*map(torch.cat, columns)),
            len(which) - keep,
            strategy=self.limits.eviction_strategy,
            threshold=self.limits.relevance_threshold,
            capacity=keep + 1,
            incoming={sequence: 1},
        )
        every = torch.cat(slots)
        for number, store in enumerate(stores):
            store.drop(every[found[which[found] == number]])
        self.evicted += len(found)

    def _sink(self, store: LayerStore, tier: int, keep: int) -> None:
        """Leaves the entries of a tier that are worth most; the others sink by one tier."""
        slots = store.find(tier=tier)
        candidates = store.candidates(slots)
        found = choose_victims(
            # Nothing is lost here, so nobody's share is at stake.
            candidates._replace(owner=torch.zeros_like(candidates.owner)),
            len(slots) - keep,
            strategy=self.limits.eviction_strategy,
            threshold=self.limits.relevance_threshold,
            capacity=len(slots),
            incoming={0: len(slots)},
        )
        store.sink(slots[found], tier + 1)

    # -- reading ---------------------------------------------------------------------------------

    def find(self, layer: int | None = None, sequence: int | None = None) -> list[Picked]:
        """All entries, or those of a layer or of a sequence."""
        return [
            Picked(number, store, store.find(sequence))
            for number, store in sorted(self.stores.items())
            if layer in (None, number)
        ]

    def clear(self, sequence: int | None) -> int:
        """Zero the entries of a sequence, or all; returns how many there were."""
        before = len(self)
        for store in self.stores.values():
            store.drop(store.find(sequence))
        return before - len(self)


def column(picked: list[Picked], name: str) -> torch.Tensor:
    """A column of the entries, `[n]`."""
    parts = [store.columns[name][slots] for _, store, slots in picked]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
