"""What changes entries of a `LayeredMemoryBuffer` that are stored already."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch

from cmr.config import checks as check
from cmr.memory.buffer.layers import Layers, Limits


class Changes:
    """A part of `LayeredMemoryBuffer`."""

    limits: Limits
    lock: threading.RLock
    _layers: Layers
    _names: dict[int, str]
    _counted: Counter[str]
    _base: str | None

    def set_relevance_threshold(self, threshold: float | None) -> None:
        """Entries of lower relevance are evicted before all others from now on; None: no limit."""
        if threshold is not None:
            threshold = check.real("relevance_threshold", threshold, 0.0, 1.0)
        with self.lock:
            self.limits = self._layers.limits = replace(self.limits, relevance_threshold=threshold)

    def rename_sequences(self, numbers: Mapping[int, int]) -> None:
        """Give sequences other numbers, all at once; entries of those not named keep theirs.

        Raises:
            ValueError: two sequences would get one number.
        """
        with self.lock:
            held = {
                int(number)
                for store in self._layers.stores.values()
                for number in store.columns["sequence"][store.find()]
            }
            after = {number: numbers.get(number, number) for number in held}
            if len(set(after.values())) != len(after):
                raise ValueError(f"numbers: one of its own for each sequence expected, got {after}")
            for store in self._layers.stores.values():
                slots = store.find()
                old = store.columns["sequence"][slots].tolist()
                store.renumber(slots, torch.tensor([after[n] for n in old], dtype=torch.int64))
            self._base = None  # what was saved has the old numbers: it is written anew
            self._names = {after.get(n, n): name for n, name in self._names.items()}

    def drop(self, layer_idx: int, slots: torch.Tensor) -> int:
        """Zero entries of a layer; returns how many there were.

        Args:
            layer_idx: a layer that has entries.
            slots: `[k]` int64 on the CPU, each holding an entry.
        """
        with self.lock:
            self._layers.stores[layer_idx].drop(slots)
            self._counted["cleared"] += len(slots)
            return len(slots)
