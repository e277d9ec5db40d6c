"""Forgetting: slots, files and copies are zeroed, and looked at again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cmr.errors import CMRError
from cmr.integration.core import Core
from cmr.integration.hooks.stepper import Stepper
from cmr.memory.spans import flat, holding

# Blocks that are zeroed before others have their turn.
PIECE = 1024


@dataclass(frozen=True)
class ForgetReport:
    """What one `forget` did.

    Attributes:
        blocks: blocks that were zeroed.
        tokens: tokens in them.
        bytes: bytes that were zeroed, each looked at afterwards and found to be 0.
        sessions: names of the sessions that ended.
        files: saved memories that were written anew without these blocks.
        outstanding: saved memories that still hold some of it, and why: nobody who opens them sees
            it, and it is erased there as soon as it can be. What earlier calls left is among it.
    """

    blocks: int
    tokens: int
    bytes: int
    sessions: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    outstanding: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Task:
    """A forgetting that has begun: blocks by number, sessions by name, and what was done so far."""

    numbers: Sequence[int]
    sessions: Mapping[str, int]
    meant: Collection[int] = ()
    gone: list[int] = field(default_factory=list)
    counts: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))
    ended: list[str] = field(default_factory=list)


class Forgetter:
    """Finds what is to be forgotten and zeroes every copy of it, those in forwards too.

    What has begun is finished: where an exception comes in between, `finish` goes on from there.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper
        self._task: _Task | None = None

    def select(
        self,
        session: str | None = None,
        ids: Iterable[int] | int | None = None,
        text: str | Sequence[int] | None = None,
        older_than: float | None = None,
        tokenizer: Any = None,
        elsewhere: Callable[[], Collection[int]] = tuple,
    ) -> torch.Tensor:
        """Slots `[n]` of the blocks that fit all that is given; see `Memory.forget`.

        `elsewhere` gives numbers of blocks that need not be stored here.
        """
        core, ledger = self._core, self._core.ring.ledger
        number = None if session is None else core.table.require(session)
        slots = ledger.slots_of(number)
        if ids is not None:
            wanted = {ids} if isinstance(ids, int) else set(ids)
            strange = sorted(wanted - set(ledger.number[slots].tolist()))
            if strange:
                strange = sorted(set(strange) - set(elsewhere()))
            if strange:
                raise ValueError(
                    f"ids: numbers of stored blocks expected (see inspect), got {strange[:8]}"
                )
            numbers = torch.tensor(sorted(wanted), dtype=torch.int64)
            slots = slots[torch.isin(ledger.number[slots], numbers)]
        if older_than is not None:
            if not older_than >= 0:
                raise ValueError(f"older_than: seconds of at least 0 expected, got {older_than!r}")
            slots = slots[ledger.born[slots] <= time.time() - older_than]
        if text is not None:
            if isinstance(text, str) and tokenizer is None:
                raise ValueError(
                    "text: token ids expected where no tokenizer is known; "
                    "give one with attach(..., tokenizer=...)"
                )
            if not (flat(text) if isinstance(text, str) else len(text)):
                raise ValueError("text: a span to forget expected, got an empty one")
            if not isinstance(text, str):
                text = [int(token) for token in text]
            slots = slots[torch.isin(slots, holding(core.ring, number, text, tokenizer))]
        return slots

    @property
    def begun(self) -> bool:
        """Whether something is to be forgotten that is not yet."""
        return self._task is not None

    def forget(
        self,
        numbers: Sequence[int],
        sessions: Mapping[str, int],
        tell: Callable[[], object] = lambda: None,
        meant: Collection[int] = (),
    ) -> tuple[ForgetReport, list[int]]:
        """Zero blocks and every copy of them, end sessions; what was done, and the blocks' numbers.

        What a session that ends has stored meanwhile goes with it; a block that somebody else has
        forgotten meanwhile is passed over. Raises `CMRError` where a byte was not 0 afterwards.
        `tell` is called once nothing can keep it from being done, before anything is. `meant` are
        sessions of which copies go in any case: a block may be recalled that was evicted since.
        """
        self.finish()
        self._task = task = _Task(numbers, sessions, meant)
        tell()
        self.finish()
        tokens, size = task.counts.tolist()
        return ForgetReport(len(task.gone), tokens, size, tuple(task.ended)), task.gone

    def finish(self) -> None:
        """Carry out what has begun; nothing where all is done. Takes `core.lock` by itself."""
        task, core, ledger = self._task, self._core, self._core.ring.ledger
        if task is None:
            return
        # In short pieces, between which others have their turn; by numbers, not slots: between two
        # pieces a slot may have come to hold another block.
        for piece in torch.tensor(list(task.numbers), dtype=torch.int64).split(PIECE):
            with core.lock:
                held = ledger.slots_of(None)
                self._zero(held[torch.isin(ledger.number[held], piece)], task)
        with core.lock:
            if task.meant:
                self.drop_copies(set(task.meant))
            for name, number in task.sessions.items():
                if core.table.find(name) != number:
                    continue  # somebody else has ended it, and its name may be of another by now
                self._zero(ledger.slots_of(number), task)
                with core.journal.change():
                    core.table.remove(name)
                    self.drop_copies({number})
                task.ended.append(name)
        self._task = None

    def _zero(self, slots: torch.Tensor, task: _Task) -> None:
        """Zero blocks, and look that they are."""
        ring = self._core.ring
        if not len(slots):
            return
        owners = set(ring.ledger.owner[slots].tolist())
        numbers = ring.ledger.number[slots].tolist()
        tokens = int((ring.positions[slots.to(ring.device)] >= 0).sum())
        with self._core.journal.change():
            ring.empty(slots)
            self.drop_copies(owners)
        task.gone += numbers
        task.counts += torch.tensor([tokens, self._prove(slots)])

    def drop_copies(self, sessions: set[int]) -> None:
        """Let go of what was run again, and of what forwards have recalled of these sessions."""
        # Each of these may hold what was forgotten: passages run again, results of searches, and
        # forwards under way; whoever saves looks at the count.
        self._core.forgotten += 1
        ring, table = self._core.ring, self._core.table
        for number in filter(table.texts, sessions):
            # What is not stored any more is not known again, be it that it was evicted: it may be
            # what was to be forgotten, and nobody could tell.
            table.keep_texts_at(number, ring.places(ring.ledger.slots_of(number)))
        self._core.recomputed.forget()
        self._core.retriever.forget(self._core.ring)
        self._stepper.forget_recalls(sessions)
        if self._core.on_forgotten is not None:
            self._core.on_forgotten(sessions)

    def _prove(self, slots: torch.Tensor) -> int:
        """Bytes of the slots in every tensor, each of them looked at."""
        ring, found = self._core.ring, 0
        for number, tier in enumerate(ring.ledger.tiers):
            here = slots[tier.holds(slots)] - tier.first
            for name, part in ring.parts[number].items() if len(here) else ():
                rows = part.index_select(0, here.to(part.device))
                # As bytes: -0.0 is equal to 0, and would be something that is left.
                if bool(rows.view(torch.uint8).any()):
                    raise CMRError(f"{name} of the tier {tier.name!r} is not 0 after forgetting")
                found += rows.numel() * rows.element_size()
        at = slots.to(ring.device)
        if bool(ring.token_ids[at].any()) or bool((ring.session[at] >= 0).any()):
            raise CMRError("token ids are not 0 after forgetting")
        return found + ring.token_ids[at].numel() * ring.token_ids.element_size()
