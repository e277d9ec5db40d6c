"""`LayeredMemoryBuffer`: a bounded store of single hidden states by layer, that needs no model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from cmr._fork import renew
from cmr.config import checks as check
from cmr.errors import ModelMismatchError
from cmr.memory.buffer.layer_store import NO_TOKEN, LayerStore
from cmr.memory.buffer.layers import BufferLimits, Layers, Picked, column
from cmr.memory.buffer.saved import BufferContent, restore
from cmr.memory.entry import MemoryEntry
from cmr.memory.state_checks import relevance_to_store, states_to_store
from cmr.memory.store import SaveReport, save

_SHAPE = ("max_entries_per_layer", "max_total_entries", "recent", "working", "reduce_long_term")


class LayeredMemoryBuffer:
    """Hidden states by layer and sequence: bounded, evicted by use and relevance, searched.

    An entry is one hidden state `[hidden]`. Each layer has room for `max_entries_per_layer` of
    them, allocated when its first entry shows width, data type and device, and never again. A new
    entry goes into the tier `recent`. When that is full, what is worth least by the strategy sinks
    into `working`, and from there into `long_term`; entries never rise. What is evicted is decided
    over all tiers alike, by `cmr.memory.eviction.choose_victims`: no sequence is pushed below its
    fair share by another one. A freed slot is zeroed.

    Entries that are returned are copies, taken when asked for: they stay as they are, and changing
    them changes nothing here. Every `retrieve_...` counts as a use of what it returns. Methods may
    be called from several threads: one runs at a time.

    Args:
        max_entries_per_layer: most entries of a layer, 1 or more.
        max_total_entries: most entries of all layers together, 1 or more.
        eviction_strategy: 'lru_relevance', 'lru', 'relevance' or 'oldest'.
        cleanup_threshold: share of a full layer (of all, of a full tier) that stays when room is
            made, in (0, 1]; one place at least becomes free.
        recent: entries of a layer in the first tier, at least 1; None: a quarter of the layer.
        working: entries of a layer in the second tier, at least 0; None: a quarter of the layer.
            What is in neither is long-term.
        reduce_long_term: keep long-term states in 8 bits with a scale each; what is given back of
            them is off by half a step of 1/127 of the state's largest value.
        relevance_threshold: entries of lower relevance are evicted first; None: no such limit.
        device: where the states are kept; None: where a layer's first state is.

    Attributes:
        lock: held while a method runs; whoever calls several that belong together holds it.

    Raises:
        ConfigError: an argument is of the wrong type or out of its range.
    """

    def __init__(
        self,
        max_entries_per_layer: int = 1000,
        max_total_entries: int = 5000,
        eviction_strategy: str = "lru_relevance",
        cleanup_threshold: float = 0.8,
        *,
        recent: int | None = None,
        working: int | None = None,
        reduce_long_term: bool = False,
        relevance_threshold: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        limits = BufferLimits(
            max_entries_per_layer,
            max_total_entries,
            # A tier that nobody named is given its room there.
            recent,  # type: ignore[arg-type]
            working,  # type: ignore[arg-type]
            reduce_long_term,
            eviction_strategy,
            cleanup_threshold,
            relevance_threshold,
        )
        self.device = None if device is None else torch.device(device)
        self._layers = Layers(limits)
        # The save that the next one to the same folder adds to; None: it is written anew.
        self._base: str | None = None
        self.lock = threading.RLock()
        renew(self, "lock", threading.RLock)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def limits(self) -> BufferLimits:
        """The numbers that the buffer was made with, and the threshold that holds now."""
        return self._layers.limits

    # -- writing ---------------------------------------------------------------------------------

    def add_entry(self, entry: MemoryEntry) -> range:
        """Store an entry; one of several tokens becomes as many entries, see `store_state`.

        What it says of its use and place elsewhere (`timestamp`, `slot`, …) starts anew here.
        """
        return self.store_state(
            entry.hidden_state,
            entry.layer_idx,
            entry.sequence_id,
            entry.position_idx,
            entry.relevance_score,
            token_ids=entry.token_ids,
            session=entry.session,
        )

    def store_state(
        self,
        hidden_state: torch.Tensor,
        layer_idx: int,
        sequence_id: int,
        position_idx: int = 0,
        relevance_score: float | torch.Tensor = 0.5,
        *,
        token_ids: tuple[int, ...] = (),
        session: str = "",
    ) -> range:
        """Store the hidden state of a token, or of several that follow each other.

        Where more come than fit, the last ones stay. A layer's first state decides the width and
        data type of all of its states.

        Args:
            hidden_state: `[hidden]` or `[tokens, hidden]`, any float dtype, finite.
            layer_idx: 0 or more.
            sequence_id: who owns the entry, 0 or more.
            position_idx: position of the first token in its sequence.
            relevance_score: in [0, 1]; one number or `[tokens]`.
            token_ids: a token id for each token, or none.
            session: name of the sequence, until its last entry goes; '': the one that is known.

        Returns:
            The numbers (`timestamp`) of the new entries, which count up from 1.

        Raises:
            TypeError: the state is no float tensor.
            ValueError: a value is out of its range, or shapes do not fit each other.
            ModelMismatchError: width or data type are not the layer's.
        """
        layer = check.integer("layer_idx", layer_idx, 0)
        sequence = check.integer("sequence_id", sequence_id, 0)
        position = check.integer("position_idx", position_idx, 0)
        states = states_to_store(hidden_state)
        count = len(states)
        relevance = relevance_to_store(relevance_score, count)
        if token_ids and len(token_ids) != count:
            raise ValueError(f"token_ids: {count} or none expected, got {len(token_ids)}")
        # All is checked before the lock is taken and before anything is stored.
        ids = [check.integer("token_ids", token, 0) for token in token_ids]
        with self.lock:
            name = self._layers.names.get(sequence, session)
            if session not in ("", name):
                raise ValueError(f"session: sequence {sequence} has another name already")
            store = self._layers.fitting(layer, states, self.device or states.device)
            # Only now: a state that does not fit the layer leaves no name behind.
            if name:
                self._layers.names[sequence] = name
            return self._layers.write(
                store,
                sequence,
                states,
                position=torch.arange(position, position + count),
                token_id=torch.tensor(ids or [NO_TOKEN] * count),
                relevance=relevance,
            )

    # -- reading ---------------------------------------------------------------------------------

    def retrieve_recent(
        self, k: int = 10, *, layer_idx: int | None = None, sequence_id: int | None = None
    ) -> list[MemoryEntry]:
        """The `k` entries that were stored last, newest first.

        `layer_idx` and `sequence_id`: only of this layer, of this sequence; None: of any.
        """
        k = check.integer("k", k, 1)
        with self.lock:
            picked = self._find(layer_idx, sequence_id)
            return self._layers.take(picked, (-column(picked, "created")).argsort()[:k])

    def retrieve_relevant(
        self,
        query: torch.Tensor,
        k: int = 10,
        *,
        layer_idx: int,
        sequence_id: int | None = None,
        min_similarity: float | None = None,
    ) -> list[MemoryEntry]:
        """The entries of a layer with the highest cosine to a query, best first.

        Of equal ones the one in the lower slot comes first.

        Args:
            query: `[hidden]`, any float dtype and norm: a state of the same layer, as states of
                different layers cannot be compared.
            k: how many at most, 1 or more.
            layer_idx: the layer.
            sequence_id: only of this sequence; None: of any.
            min_similarity: least cosine, in [-1, 1]; None: any.

        Raises:
            TypeError: the query is no float tensor.
            ModelMismatchError: its width is not the layer's.
        """
        k = check.integer("k", k, 1)
        layer = check.integer("layer_idx", layer_idx, 0)
        if min_similarity is not None:
            min_similarity = check.real("min_similarity", min_similarity, -1.0, 1.0)
        query = states_to_store(query, "query")
        if len(query) != 1:
            raise ValueError(f"query: [hidden] expected, got {list(query.shape)}")
        with self.lock:
            store = self._layers.stores.get(layer)
            if store is None:
                return self._layers.take([], torch.empty(0, dtype=torch.int64))
            if store.hidden != query.shape[1]:
                raise ModelMismatchError(
                    f"layer {layer}: a query of size {store.hidden} expected, got {query.shape[1]}"
                )
            slots = store.find(_optional("sequence_id", sequence_id))
            return self.take(layer, store.search(query[0], slots, k, min_similarity))

    def retrieve_top_k_relevant(
        self,
        k: int = 10,
        *,
        layer_idx: int | None = None,
        sequence_id: int | None = None,
        min_relevance: float = 0.0,
    ) -> list[MemoryEntry]:
        """The `k` entries of the highest `relevance_score`, best first; of equals the newer first.

        `layer_idx` and `sequence_id` as for `retrieve_recent`; `min_relevance`: least, in [0, 1].
        """
        k = check.integer("k", k, 1)
        least = check.real("min_relevance", min_relevance, 0.0, 1.0)
        with self.lock:
            picked = self._find(layer_idx, sequence_id)
            relevance = column(picked, "relevance")
            # Newest first, then a sort that keeps the order of equals.
            order = (-column(picked, "created")).argsort()
            order = order[relevance[order] >= least]
            return self._layers.take(picked, order[(-relevance[order]).argsort(stable=True)][:k])

    def retrieve_by_layer(self, layer_idx: int) -> list[MemoryEntry]:
        """All entries of a layer, oldest first."""
        with self.lock:
            picked = self._find(check.integer("layer_idx", layer_idx, 0), None)
            return self._layers.take(picked, column(picked, "created").argsort())

    def retrieve_by_sequence(self, sequence_id: int) -> list[MemoryEntry]:
        """All entries of a sequence, over all layers, oldest first."""
        with self.lock:
            picked = self._find(None, check.integer("sequence_id", sequence_id, 0))
            return self._layers.take(picked, column(picked, "created").argsort())

    def take(self, layer_idx: int, slots: torch.Tensor) -> list[MemoryEntry]:
        """Copies of the entries in slots `[k]` (on the CPU) of a layer, counted as used."""
        with self.lock:
            picked = [Picked(layer_idx, self._layers.stores[layer_idx], slots)]
            return self._layers.take(picked, torch.arange(len(slots)))

    def layer(self, layer_idx: int) -> LayerStore | None:
        """A layer, to look at while `lock` is held; None where nothing ever was stored."""
        return self._layers.stores.get(check.integer("layer_idx", layer_idx, 0))

    @property
    def clock(self) -> int:
        """Number of the newest entry that was ever stored."""
        return self._layers.clock

    @property
    def version(self) -> int:
        """Another number after each change of what is stored."""
        return max((store.version for store in self._layers.stores.values()), default=0)

    def get_buffer_stats(self) -> dict[str, Any]:
        """What is stored and what happened so far, as plain data.

        Returns:
            `total_entries`, `entries_by_layer`, `entries_by_sequence`, `entries_by_tier`,
            `utilisation` (share of `max_total_entries`), `utilisation_by_layer`, `nbytes` (of all
            preallocated tensors), `mean_relevance` and `mean_access_count` of what is stored (None
            of nothing); counted since the buffer was made: `added`, `loaded`, `evicted`,
            `cleared` (the first two less these two are the total), `retrievals`, `hits` (those that
            found something), `hit_rate` (None before the first), `retrieved` entries; `settings`.
        """
        with self.lock:
            return self._layers.stats()

    def _find(self, layer: int | None, sequence: int | None) -> list[Picked]:
        return self._layers.find(_optional("layer_idx", layer), _optional("sequence_id", sequence))

    # -- changing, forgetting --------------------------------------------------------------------

    def set_relevance_threshold(self, threshold: float | None) -> None:
        """Entries of lower relevance are evicted before all others from now on; None: no limit."""
        with self.lock:
            self._layers.limits = replace(self.limits, relevance_threshold=threshold)

    def rename_sequences(self, numbers: Mapping[int, int]) -> None:
        """Give sequences other numbers, all at once; ValueError where two would get one."""
        with self.lock:
            self._layers.renumber(numbers)
            self._base = None  # what was saved has the old numbers: it is written anew

    def drop_duplicates(self, layers: Iterable[int]) -> int:
        """Zero entries with the token, state and sequence of a newer one of their layer.

        Returns how many there were in the given layers.
        """
        with self.lock:
            return self._layers.drop_duplicates(layers)

    def clear_sequence(self, sequence_id: int) -> int:
        """Zero the entries of a sequence and forget its name; returns how many there were."""
        with self.lock:
            return self._layers.clear(check.integer("sequence_id", sequence_id, 0))

    def clear_all(self) -> int:
        """Zero all entries and forget all names; returns how many there were.

        The layers keep their room and their shape. Numbers go on: none comes twice.
        """
        with self.lock:
            return self._layers.clear(None)

    def empty_like(self) -> LayeredMemoryBuffer:
        """A buffer with the same settings that holds nothing."""
        return LayeredMemoryBuffer(**asdict(self.limits), device=self.device)

    def release(self) -> None:
        """Forget all entries, and let go of the layers' room: the next state decides it anew."""
        with self.lock:
            self._layers.clear(None)
            self._layers.stores.clear()

    # -- saving ----------------------------------------------------------------------------------

    def save_state(
        self, path: str | os.PathLike[str], *, key: bytes | str | None = None
    ) -> SaveReport:
        """Save all entries to a folder, all or nothing; see `cmr.memory.store.save`.

        Saved again to the same folder, only new entries are written. `key` encrypts what is saved:
        32 bytes or a passphrase. `StoreError`: the folder holds something else, or is in use.
        """
        with self.lock:
            content = BufferContent(self._layers, self._settings())
            # The last save, so that only what is new is written.
            report = save(path, content, base=self._base, key=key)
            self._base = report.id
            return report

    def load_state(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> int:
        """Take what was saved in the place of all that is stored; returns how many entries it is.

        Entries come back in their slots and tiers, with their numbers and their use; settings and
        counts of what happened are this buffer's. `key`: what it was encrypted with.

        Raises:
            MemoryNotFoundError, CorruptMemoryError, NewerFormatError, MemoryKeyError: as
                `cmr.memory.store.Saved.open` says. Nothing is changed then, as below.
            ValueError: it was saved with other limits or sizes of tiers, or is no buffer's.
        """
        with self.lock:
            loaded = Layers(self.limits)
            device = self.device or torch.device("cpu")
            # Built beside what is there, which stays where the file is refused.
            base = restore(path, key, self._settings(), loaded, device)
            # All that can fail is done. What goes is zeroed, not only let go of.
            self._layers.clear(None)
            loaded.clock = max(self._layers.clock, loaded.clock)
            loaded.counted = self._layers.counted
            loaded.counted["loaded"] += len(loaded)
            self._layers, self._base = loaded, base
            return len(loaded)

    def _settings(self) -> dict[str, Any]:
        """What the buffer that takes a saved one back must have alike."""
        return {name: getattr(self.limits, name) for name in _SHAPE}


def _optional(name: str, value: int | None) -> int | None:
    return None if value is None else check.integer(name, value, 0)
