"""All layers of a `LayeredMemoryBuffer` together: what they hold, and what makes room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from cmr.config import EVICTION_STRATEGIES
from cmr.config import checks as check
from cmr.errors import ModelMismatchError
from cmr.memory.buffer.layer_store import NO_TOKEN, RECENT, WORKING, LayerStore
from cmr.memory.entry import MemoryEntry
from cmr.memory.eviction import Candidates, choose_victims
from cmr.memory.slot_ledger import TIERS

_COUNTED = ("added", "loaded", "evicted", "cleared", "retrievals", "hits", "retrieved")


@dataclass(frozen=True)
class BufferLimits(check.Checked):
    """How much is kept, and what of it; see `LayeredMemoryBuffer`."""

    max_entries_per_layer: int = check.setting(1000, check.integer, 1)
    max_total_entries: int = check.setting(5000, check.integer, 1)
    recent: int = check.setting(None, check.integer, 1)
    working: int = check.setting(None, check.integer, 0)
    reduce_long_term: bool = check.setting(False, check.flag)
    eviction_strategy: str = check.setting("lru_relevance", check.choice, EVICTION_STRATEGIES)
    cleanup_threshold: float = check.setting(0.8, check.share)
    relevance_threshold: float | None = check.setting(None, check.real, 0.0, 1.0)

    def __post_init__(self) -> None:
        """Checks every field; a tier that nobody named holds a quarter of its layer."""
        super().__post_init__()
        quarter = self.max_entries_per_layer // 4
        for tier, entries in (("recent", max(1, quarter)), ("working", quarter)):
            if getattr(self, tier) is None:
                check.put(self, tier, entries)

    def kept(self, size: int) -> int:
        """What stays of a full layer or tier; one place at least becomes free."""
        return min(int(self.cleanup_threshold * size), size - 1)


class Picked(NamedTuple):
    """Some entries of a layer: its number, its store and their slots `[k]`."""

    layer: int
    store: LayerStore
    slots: torch.Tensor


class Layers:
    """The stores of all layers by number, with one clock, and names of sequences by number."""

    def __init__(self, limits: BufferLimits) -> None:
        self.limits = limits
        self.stores: dict[int, LayerStore] = {}
        self.names: dict[int, str] = {}
        # The number of the newest entry ever stored. Whoever calls has checked the arguments and
        # holds the buffer's lock.
        self.clock = 0
        self.counted: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))

    def __len__(self) -> int:
        return sum(store.held for store in self.stores.values())

    def new_store(
        self, layer: int, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> LayerStore:
        """An empty layer of this size, which takes its place among the stores."""
        of = self.limits
        # A layer never holds more than all layers may.
        slots = min(of.max_entries_per_layer, of.max_total_entries)
        full = of.recent + of.working if of.reduce_long_term else None
        with torch.inference_mode(False):  # what is made in it could not be changed outside
            store = self.stores[layer] = LayerStore(slots, hidden, dtype, device, full)
        return store

    def fitting(self, layer: int, states: torch.Tensor, device: torch.device) -> LayerStore:
        """The store of a layer, made on `device` where there is none."""
        store = self.stores.get(layer)
        if store is None:
            return self.new_store(layer, states.shape[1], states.dtype, device)
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
        evicted = self.counted["evicted"]
        while done < count:
            # Part by part: a text may be longer than the room that can be made at once.
            self._make_room(store, sequence)
            part = slice(done, done + min(count - done, self._room(store)))
            done = part.stop
            store.write(
                states[part],
                sequence=sequence,
                created=torch.arange(first + part.start, first + done),
                **{name: values[part] for name, values in columns.items()},
            )
            self.clock = first + done - 1
        self.counted["added"] += count
        if self.names and self.counted["evicted"] != evicted:
            # A name is forgotten with the last entry of its sequence.
            held = self.sequences()
            self.names = {number: name for number, name in self.names.items() if number in held}
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
        # Entries of all layers compete: a layer may shrink for another one.
        if len(self) == of.max_total_entries:
            self._evict([*self.stores.values()], of.kept(of.max_total_entries), sequence)
        # Sinking comes after eviction, which may have made room in the first tier.
        if store.by_tier[RECENT] == of.recent:
            self._sink(store, RECENT, of.kept(of.recent))
            if store.by_tier[WORKING] > of.working:
                self._sink(store, WORKING, int(of.cleanup_threshold * of.working))

    def _evict(self, stores: list[LayerStore], keep: int, sequence: int) -> None:
        """Entries of all given stores compete with each other; `keep` of them stay."""
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
        self.counted["evicted"] += len(found)

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

    def clear(self, sequence: int | None) -> int:
        """Zero the entries of a sequence, or all, and their names; returns how many there were."""
        before = len(self)
        for store in self.stores.values():
            store.drop(store.find(sequence))
        if sequence is None:
            self.names.clear()
        else:
            self.names.pop(sequence, None)
        self.counted["cleared"] += before - len(self)
        return before - len(self)

    def drop_duplicates(self, layers: Iterable[int]) -> int:
        """Zero what is stored twice in some layers; returns how many entries that were."""
        gone = 0
        for layer in layers:
            if layer in self.stores:
                slots = self.stores[layer].duplicates()
                self.stores[layer].drop(slots)
                gone += len(slots)
        self.counted["cleared"] += gone
        return gone

    def renumber(self, numbers: Mapping[int, int]) -> None:
        """Give sequences other numbers, all at once; see `LayeredMemoryBuffer`."""
        after = {number: numbers.get(number, number) for number in self.sequences()}
        if len(set(after.values())) != len(after):
            raise ValueError(f"numbers: one of its own for each sequence expected, got {after}")
        # All at once: one after the other, two sequences could not swap their numbers.
        for store in self.stores.values():
            slots = store.find()
            old = store.columns["sequence"][slots].tolist()
            store.renumber(slots, torch.tensor([after[n] for n in old], dtype=torch.int64))
        self.names = {after.get(n, n): name for n, name in self.names.items()}

    # -- reading ---------------------------------------------------------------------------------

    def find(self, layer: int | None = None, sequence: int | None = None) -> list[Picked]:
        """All entries, or those of a layer or of a sequence."""
        return [
            Picked(number, store, store.find(sequence))
            for number, store in sorted(self.stores.items())
            if layer in (None, number)
        ]

    def sequences(self) -> set[int]:
        """Numbers of the sequences that have entries."""
        return set(column(self.find(), "sequence").tolist())

    def take(self, picked: list[Picked], order: torch.Tensor) -> list[MemoryEntry]:
        """Copies of picked entries, as places in all that is picked; counted as used."""
        self.counted["retrievals"] += 1
        self.counted["hits"] += bool(len(order))
        self.counted["retrieved"] += len(order)
        out: list[MemoryEntry | None] = [None] * len(order)
        first = 0
        for layer, store, slots in picked:
            mine = ((order >= first) & (order < first + len(slots))).nonzero().view(-1)
            chosen = slots[order[mine] - first]
            first += len(slots)
            # Entries show their use with this one in it.
            store.touch(chosen, self.clock)
            entries = self._entries(layer, store, chosen)
            for at, entry in zip(mine.tolist(), entries, strict=True):
                out[at] = entry
        return [entry for entry in out if entry is not None]

    def _entries(self, layer: int, store: LayerStore, slots: torch.Tensor) -> list[MemoryEntry]:
        known = {name: values[slots].tolist() for name, values in store.columns.items()}
        return [
            MemoryEntry(
                # A copy of its own: one that is kept does not keep all others alive.
                hidden_state=state.clone(),
                layer_idx=layer,
                sequence_id=known["sequence"][i],
                position_idx=known["position"][i],
                relevance_score=known["relevance"][i],
                timestamp=known["created"][i],
                access_count=known["access_count"][i],
                last_access=known["last_access"][i],
                session=self.names.get(known["sequence"][i], ""),
                token_ids=(known["token_id"][i],) if known["token_id"][i] != NO_TOKEN else (),
                slot=int(slots[i]),
                tier=TIERS[known["tier"][i]],
            )
            for i, state in enumerate(store.states(slots))
        ]

    def stats(self) -> dict[str, Any]:
        """What is stored and what happened, see `LayeredMemoryBuffer.get_buffer_stats`."""
        picked = self.find()
        sequence, counts = column(picked, "sequence").unique(return_counts=True)
        stores = {number: store for number, store, _ in picked}
        retrievals = self.counted["retrievals"]
        tiers = [sum(store.by_tier[tier] for store in stores.values()) for tier in range(3)]
        return {
            "total_entries": len(self),
            "entries_by_layer": {number: store.held for number, store in stores.items()},
            "entries_by_sequence": dict(zip(sequence.tolist(), counts.tolist(), strict=True)),
            "entries_by_tier": dict(zip(TIERS, tiers, strict=True)),
            "utilisation": len(self) / self.limits.max_total_entries,
            "utilisation_by_layer": {
                number: store.held / store.slots for number, store in stores.items()
            },
            "nbytes": sum(store.nbytes for store in stores.values()),
            "mean_relevance": _mean(column(picked, "relevance")),
            "mean_access_count": _mean(column(picked, "access_count")),
            **self.counted,
            "hit_rate": self.counted["hits"] / retrievals if retrievals else None,
            "settings": asdict(self.limits),
        }


def column(picked: list[Picked], name: str) -> torch.Tensor:
    """A column of the entries, `[n]`."""
    parts = [store.columns[name][slots] for _, store, slots in picked]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _mean(values: torch.Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
