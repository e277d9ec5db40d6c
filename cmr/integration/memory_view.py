"""What a memory shows of itself: what is stored, what was recalled, and counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cmr.integration.core import Core
from cmr.integration.files.folders import Files
from cmr.integration.first_use import first_use
from cmr.integration.hooks.next_token import NextTokenReader
from cmr.integration.hooks.step import Step
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.requests.answers import Answer
from cmr.integration.requests.scope import said_here
from cmr.integration.requests.timing import Took
from cmr.integration.reweave.recalled_passage import RecalledPassage, recalled_passages
from cmr.memory.entry import MemoryEntry
from cmr.memory.inspection import Inspection, Question, StoredBlock, blocks_from


class MemoryView:
    """The part of `Memory` that changes nothing."""

    tokenizer: Any
    _core: Core
    _stepper: Stepper

    @first_use
    def _files(self) -> Files:
        return Files(self._core)

    @first_use
    def _next_token(self) -> NextTokenReader:
        return NextTokenReader(self._core, self._stepper)

    @property
    def named(self) -> tuple[str, ...] | None:
        """The names of the surrounding `session(...)`, None outside."""
        said = [part.names for part in said_here(self._core) if part.names is not None]
        return said[-1] if said else None

    @property
    def sessions(self) -> list[str]:
        """Names of all sessions, oldest first."""
        with self._core.lock:
            return self._core.table.names()

    @property
    def recalled(self) -> list[list[RecalledPassage]]:
        """Per row of the last forward, the passages that it could read, best first.

        Of this thread or task, which sees no other's; a handle has `recalled` of its own.
        """
        return self._recalled_in(self._stepper.last)

    def _recalled_in(self, step: Step | None) -> list[list[RecalledPassage]]:
        """What a forward recalled, nothing where something of it has been forgotten since."""
        # A request that may name nobody's forward sees none, rather than somebody else's.
        if step is None:
            return []
        if step.recall is None:
            return [[] for _ in step.sessions]
        with self._core.lock:
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
        question = Question(session, tier, text, min_relevance, start, end, order, limit)
        decode = None if self.tokenizer is None else self.tokenizer.decode
        # What has expired goes from files, too, whoever is the first to look.
        self._files.tidy()
        with self._core.lock:
            # No text of another session is looked at where one is asked for.
            blocks = self._stored_blocks(session)
        if decode is not None:
            # Without the lock, as it takes a while: others may have their turn.
            blocks = [replace(block, text=decode(list(block.token_ids))) for block in blocks]
        return question.of(blocks)

    @property
    def outstanding(self) -> dict[str, str]:
        """Saved memories that still hold something that was forgotten, each with the reason.

        Nobody who opens them sees it. It is tried again by every `forget`, `clear`, `consolidate`,
        `save`, `load` and `inspect`, and by whoever else opens them.
        """
        return self._files.outstanding

    def entries(self, session: str | None = None) -> list[MemoryEntry]:
        """The stored blocks, oldest first, of one session or of all."""
        ring, table = self._core.ring, self._core.table
        ledger, found = ring.ledger, []
        with self._core.lock:
            slots = ledger.slots_of(None if session is None else table.require(session))
            owners = ring.session.tolist()
            for slot, states in zip(slots.tolist(), ring.states(slots), strict=True):
                held = ring.positions[slot] >= 0
                found.append(
                    MemoryEntry(
                        hidden_state=states[held],
                        layer_idx=self._core.layout.index_layer,
                        sequence_id=owners[slot],
                        position_idx=int(ring.positions[slot][held].min()),
                        relevance_score=float(ring.relevance[slot]),
                        timestamp=float(ring.created[slot]),
                        access_count=int(ring.access_count[slot]),
                        last_access=float(ring.last_access[slot]),
                        session=table.name_of(owners[slot]),
                        token_ids=tuple(ring.token_ids[slot][held].tolist()),
                        slot=slot,
                        tier=ledger.tiers[ledger.tier_of(slot)].name,
                    )
                )
        return found

    @property
    def tokens(self) -> int:
        """Tokens stored at present."""
        with self._core.lock:
            return self._core.ring.stored_tokens()

    @property
    def nbytes(self) -> int:
        """Bytes of the preallocated store."""
        return self._core.ring.nbytes

    def watch(self, told: Callable[[Took], object]) -> Callable[[], None]:
        """Have `told` called with what each request did and how long it took; see `Took`.

        Where nobody watches nothing is measured. It is called in the thread of the request, with
        the memory's lock held: it must be quick. What it raises is logged, and breaks no request.

        Returns:
            What ends it.
        """
        return self._core.timing.watch(told)

    def watch_requests(self, told: Callable[[list[Answer]], object]) -> Callable[[], None]:
        """Have `told` called when a request is over with what it asked and got, row by row.

        A request is a `generate`, or a forward of several tokens outside of one, that gave an
        answer and searched; see `Answer`. Where nobody is told nothing is noted. It is called in
        the thread of the request, after a forward with the memory's lock held: it must be quick.
        What it raises is logged, and breaks no request.

        Returns:
            What ends it.
        """
        return self._core.answers.watch(told)

    @property
    def quiet_seconds(self) -> float:
        """Seconds since the last request ended; 0 while one is under way, or anything else is done.

        It is known of what began while somebody is told of requests, see `watch_requests`.
        """
        core = self._core
        if core.answers.under_way or core.lock.wanted:
            return 0.0
        return time.monotonic() - core.answers.ended

    def stats(self) -> dict[str, Any]:
        """Counters and sizes; see the keys. Reads the device: for people, not for the hot path."""
        core, ring, keeper = self._core, self._core.ring, self._core.keeper
        capacity, replays = ring.slots * ring.block_size, self._stepper.replays
        with core.lock:
            return {
                "tokens": self.tokens,
                "blocks": sum(ring.blocks_of(core.table.find(n)) for n in self.sessions),
                "capacity_tokens": capacity,
                "sessions": len(self.sessions),
                "written_blocks": ring.written,
                "searches": core.searches,
                "recalls": core.recalls_made,
                "evicted_blocks": keeper.evicted,
                "sunk_blocks": keeper.sunk,
                "expired_blocks": keeper.expired,
                "not_finite_tokens": core.not_finite,
                "lost_tokens": core.lost,
                "failures": core.failures.stats(),
                "scoring": core.scorer.stats(),
                "tiers": ring.tier_stats(),
                "bytes": self.nbytes,
                "bytes_per_token": self.nbytes / capacity,
                "family": core.adapter.config.model_type,
                "family_detected": core.adapter.detected,
                "store": core.layout.store,
                "target_layers": list(core.layout.targets),
                "index_layer": core.layout.index_layer,
                "calibrated": core.calibration is not None,
                "searched_by": core.searched_by,
                "strategy": core.retriever.config.strategy,
                "cache": core.retriever.cache.stats(),
                "next_token": self._next_token.stats(),
                "graphs": None if replays is None else replays.stats(),
                "active": core.active,
            }

    def _stored_blocks(self, session: str | None) -> list[StoredBlock]:
        """What a session stores, or all, for people, in the order of the blocks' numbers."""
        core, ring = self._core, self._core.ring
        # What is shown is what a search could find now.
        core.keeper.expire()
        ledger = ring.ledger
        slots = ledger.slots_of(None if session is None else core.table.require(session))
        owners = [core.table.name_of(number) for number in ledger.owner[slots].tolist()]
        tiers = [tier.name for tier in ledger.tiers]
        return blocks_from(ring.about(slots), ledger.number[slots], owners, tiers, None)
