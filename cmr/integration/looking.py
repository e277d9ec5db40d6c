"""What a memory shows of itself: what is stored, what was recalled, and counts."""

from __future__ import annotations

from typing import Any

from cmr.integration.core import Core
from cmr.integration.next_token import NextTokenReader
from cmr.integration.recalled import RecalledPassage, recalled_passages
from cmr.integration.stepper import Stepper
from cmr.memory.entry import MemoryEntry
from cmr.memory.inspection import Inspection, Question


class Looking:
    """The half of `Memory` that changes nothing."""

    tokenizer: Any
    _core: Core
    _stepper: Stepper
    _next_token: NextTokenReader

    @property
    def named(self) -> tuple[str, ...] | None:
        """The names of the surrounding `session(...)`, None outside."""
        return self._core.named

    @property
    def sessions(self) -> list[str]:
        """Names of all sessions, oldest first."""
        return self._core.table.names()

    @property
    def recalled(self) -> list[list[RecalledPassage]]:
        """Per row of the last forward, the passages that it could read, best first."""
        step = self._stepper.last
        if step is None:
            return []
        if step.recall is None:
            return [[] for _ in step.sessions]
        names = [self._core.name_of(number) for number in step.sessions]
        return recalled_passages(step.recall, step.gates, names, self.tokenizer, step.said)

    def inspect(
        self,
        session: str | None = None,
        *,
        tier: str | None = None,
        text: str | None = None,
        min_relevance: float = 0.0,
        start: int = 0,
        end: int | None = None,
        order: str = "position",
        limit: int | None = None,
    ) -> Inspection:
        """The stored blocks as text, with scores and positions; see `Question` for the arguments.

        Returns:
            A sequence of `StoredBlock`, with `table()` for people and `to_dicts()` for programs.

        Raises:
            UnknownSessionError: there is no such session.
            ValueError: an argument is out of its range, or `text` is wanted without a tokenizer.
        """
        if session is not None:
            self._core.table.require(session)
        question = Question(session, tier, text, min_relevance, start, end, order, limit)
        decode = None if self.tokenizer is None else self.tokenizer.decode
        return question.of(self._core.stored_blocks(decode))

    def entries(self, session: str | None = None) -> list[MemoryEntry]:
        """The stored blocks, oldest first, of one session or of all."""
        return self._core.entries(session)

    @property
    def tokens(self) -> int:
        """Tokens stored at present."""
        return self._core.ring.stored_tokens()

    @property
    def nbytes(self) -> int:
        """Bytes of the preallocated store."""
        return self._core.ring.nbytes

    def stats(self) -> dict[str, Any]:
        """Counters and sizes; see the keys. Reads the device: for people, not for the hot path."""
        core, ring = self._core, self._core.ring
        return {
            "tokens": self.tokens,
            "blocks": sum(core.ring.blocks_of(core.table.find(n)) for n in self.sessions),
            "capacity_tokens": core.ring.slots * core.ring.block_size,
            "sessions": len(self.sessions),
            "written_blocks": core.ring.written,
            "searches": core.searches,
            "recalls": core.recalls_made,
            "evicted_blocks": ring.keeper.evicted,
            "sunk_blocks": ring.keeper.sunk,
            "expired_blocks": ring.keeper.expired,
            "scoring": core.scorer.stats(),
            "tiers": ring.tier_stats(),
            "bytes": self.nbytes,
            "bytes_per_token": self.nbytes / (core.ring.slots * core.ring.block_size),
            "family": core.adapter.config.model_type,
            "family_detected": core.adapter.detected,
            "store": core.store,
            "target_layers": list(core.targets),
            "index_layer": core.index_layer,
            "calibrated": core.calibration is not None,
            "strategy": core.retriever.config.strategy,
            "cache": core.retriever.cache.stats(),
            "next_token": self._next_token.stats(),
            "active": core.active,
        }
