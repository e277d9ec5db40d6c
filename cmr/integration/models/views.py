"""What a model class remembers: looked at, counted, forgotten."""

from __future__ import annotations

from typing import Any

from cmr.config import checks as check
from cmr.integration.models.saved import SavedModel
from cmr.memory.entry import MemoryEntry


class Looking(SavedModel):
    """Methods that look at what is remembered, and that forget it."""

    def get_memory_stats(self) -> dict[str, Any]:
        """What is remembered, as plain data.

        Returns:
            `total_captured_states` and `layers_with_memory` of the buffer, `tokens` and `sessions`
            of the memory; `memory`: `Memory.stats`; `buffer`: `LayeredMemoryBuffer.
            get_buffer_stats`; `scoring`: `RelevanceScorer.get_scoring_stats`, None of a scorer that
            has no such thing; `enabled`.
        """
        scoring = getattr(self.scorer, "get_scoring_stats", None)
        return {
            **self._memory_stats(),
            "memory": self.memory.stats(),
            "buffer": self.memory_buffer.get_buffer_stats(),
            "scoring": None if scoring is None else scoring(),
            "enabled": self.memory_enabled and self.registered,
        }

    def get_memory_usage(self) -> dict[str, Any]:
        """Bytes that are taken, preallocated or not, and how much of the room is in use.

        Returns:
            `model_bytes` (parameters and buffers), `memory_bytes`, `buffer_bytes`, `total_bytes`;
            `memory_utilisation` and `buffer_utilisation` in [0, 1].
        """
        stats, buffer = self.memory.stats(), self.memory_buffer.get_buffer_stats()
        held = [*self.model.parameters(), *self.model.buffers()]
        model = sum(tensor.numel() * tensor.element_size() for tensor in held)
        return {
            "model_bytes": model,
            "memory_bytes": stats["bytes"],
            "buffer_bytes": buffer["nbytes"],
            "total_bytes": model + stats["bytes"] + buffer["nbytes"],
            "memory_utilisation": stats["tokens"] / stats["capacity_tokens"],
            "buffer_utilisation": buffer["utilisation"],
        }

    def get_memory_for_sequence(
        self, sequence: int | str | None = None, *, blocks: bool = False
    ) -> list[MemoryEntry]:
        """What is remembered of a session, oldest first.

        Args:
            sequence: its number (`current_sequence_id`, `MemoryEntry.sequence_id`) or name; None:
                that of row 0 of the last call.
            blocks: the memory's blocks, with states of the index layer; False: the buffer's
                entries, single states at the captured layers.

        Raises:
            UnknownSessionError: there is no such session.
        """
        number = self._number(self.current_sequence_id if sequence is None else sequence)
        if blocks:
            return self.memory.entries(self.memory._core.table.name_of(number))
        return self.memory_buffer.retrieve_by_sequence(number)

    def get_top_memories(
        self,
        k: int = 10,
        *,
        layer_idx: int | None = None,
        sequence: int | str | None = None,
        blocks: bool = False,
    ) -> list[MemoryEntry]:
        """What is remembered and of the highest relevance, best first; of equals the newer first.

        Args:
            k: how many at most, 1 or more.
            layer_idx: only entries of this layer; with blocks there is only one.
            sequence: only of this session, number or name; None: of any.
            blocks: the memory's blocks; False: the buffer's entries.

        Raises:
            UnknownSessionError: there is no such session.
            ValueError: `layer_idx` with `blocks`.
        """
        number = None if sequence is None else self._number(sequence)
        if not blocks:
            return self.memory_buffer.retrieve_top_k_relevant(
                k, layer_idx=layer_idx, sequence_id=number
            )
        if layer_idx is not None:
            raise ValueError("layer_idx: None expected with blocks, which span all layers")
        k = check.integer("k", k, 1)
        name = None if number is None else self.memory._core.table.name_of(number)
        found = self.memory.entries(name)
        return sorted(found, key=lambda entry: (-entry.relevance_score, -entry.timestamp))[:k]

    def clear_memory(self, sequence: int | str | None = None) -> int:
        """Forget a session, or everything, in memory and buffer alike; returns blocks and entries.

        Raises:
            UnknownSessionError: there is no such session.
        """
        held = len(self.memory_buffer)
        if sequence is None:
            blocks = self.memory.clear()
            self.memory_buffer.clear_all()
            self.current_sequence_id = -1
        else:
            blocks = self.memory.clear(self.memory._core.table.name_of(self._number(sequence)))
        return blocks + held - len(self.memory_buffer)

    def cleanup(self) -> None:
        """Forget everything and take all hooks away: what is left is the decoder, bit for bit."""
        self.clear_memory()
        self._unregister()

    def _number(self, sequence: int | str) -> int:
        """The number of a session that there is, by number or name."""
        table = self.memory._core.table
        if isinstance(sequence, str):
            return table.require(sequence)
        number = check.integer("sequence", sequence, -1)
        table.name_of(number)
        return number
