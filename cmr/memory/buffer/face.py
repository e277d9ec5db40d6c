"""The face that every buffer of memory entries shows."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch

from cmr.memory.entry import MemoryEntry


class MemoryBuffer(Protocol):
    """Where entries are kept and asked for. `LayeredMemoryBuffer` says what each method does."""

    def retrieve_recent(
        self, k: int = 10, *, layer_idx: int | None = None, sequence_id: int | None = None
    ) -> list[MemoryEntry]:
        """The entries that were stored last, newest first."""
        ...

    def retrieve_relevant(
        self,
        query: torch.Tensor,
        k: int = 10,
        *,
        layer_idx: int,
        sequence_id: int | None = None,
        min_similarity: float | None = None,
    ) -> list[MemoryEntry]:
        """The entries that are most like a query, best first."""
        ...

    def retrieve_top_k_relevant(
        self,
        k: int = 10,
        *,
        layer_idx: int | None = None,
        sequence_id: int | None = None,
        min_relevance: float = 0.0,
    ) -> list[MemoryEntry]:
        """The entries of the highest relevance, best first."""
        ...

    def retrieve_by_layer(self, layer_idx: int) -> list[MemoryEntry]:
        """All entries of a layer, oldest first."""
        ...

    def retrieve_by_sequence(self, sequence_id: int) -> list[MemoryEntry]:
        """All entries of a sequence, oldest first."""
        ...

    def clear_sequence(self, sequence_id: int) -> int:
        """Zero a sequence's entries; returns how many there were."""
        ...

    def clear_all(self) -> int:
        """Zero all entries; returns how many there were."""
        ...

    def get_buffer_stats(self) -> dict[str, Any]:
        """What is stored and what happened, as plain data."""
        ...

    def save_state(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> Any:
        """Save all entries to a folder."""
        ...

    def load_state(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> int:
        """Take the place of what is stored by what was saved; returns how many entries that is."""
        ...
