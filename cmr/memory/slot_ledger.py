"""Who has which slot: the host's own account of a store, so that the device is never asked."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from cmr.memory.journal import Journal
from cmr.memory.sessions import NO_SESSION

# Names of the tiers from the top down: where new blocks go, and where they sink.
TIERS = ("recent", "working", "long_term")


class Tier(NamedTuple):
    """A range of slots: its name (one of `TIERS`), first slot and number of slots."""

    name: str
    first: int
    slots: int

    @property
    def end(self) -> int:
        """The slot behind its last one."""
        return self.first + self.slots

    def holds(self, slots: torch.Tensor) -> torch.Tensor:
        """Which of some slots are its own: bool, the same shape."""
        return (slots >= self.first) & (slots < self.end)


class SlotLedger:
    """One space of slots over all tiers, and what is in each of them.

    `sizes`: tier name to its number of slots, from the top down; tiers without slots are left out,
    ValueError where the first one has none. `journal`: what the changes of a ledger are noted in;
    None: one of its own.

    Attributes:
        tiers: the tiers that have slots, from the top down.
        slots: slots of all tiers together.
        owner: `[slots]` int64, session number or `NO_SESSION`.
        number: `[slots]` int64, the block's number, 0 where there is none.
        born: `[slots]` float64, seconds since the epoch when its text was stored.
        deadline: `[slots]` float64, when it is to be forgotten; `inf` for never.
        pinned: `[slots]` bool, whether it may not be evicted.
        dirty: `[slots]` bool, slots that still have something of a block that is gone from there.
        unsettled: whether any slot is dirty.
        changes: counts the writes, moves and removals; it never goes back.
        limit: the slot behind the last one that was ever taken: what a search has to look at.
        expires: whether any block was ever stored for a limited time.
    """

    def __init__(self, sizes: Mapping[str, int], journal: Journal | None = None) -> None:
        first, tiers = 0, []
        for name in TIERS:
            if sizes.get(name, 0):
                tiers.append(Tier(name, first, sizes[name]))
                first += sizes[name]
        if not tiers or tiers[0].name != TIERS[0]:
            raise ValueError(f"a ring buffer needs at least 1 slot, got {sizes.get(TIERS[0], 0)}")
        self.tiers = tuple(tiers)
        self.slots = first
        self.owner = torch.full((first,), NO_SESSION)
        self.number = torch.zeros(first, dtype=torch.int64)
        self.born = torch.zeros(first, dtype=torch.float64)
        self.deadline = torch.full((first,), math.inf, dtype=torch.float64)
        self.pinned = torch.zeros(first, dtype=torch.bool)
        self.dirty = torch.zeros(first, dtype=torch.bool)
        self.unsettled = False
        self.changes = 0
        # At which change each slot last came to hold something: what copies have to look at.
        self._stamp = torch.zeros(first, dtype=torch.int64)
        # Heaps: the lowest slot comes first, so what is held stays together and searches short.
        self._free = [list(range(tier.first, tier.end)) for tier in tiers]
        self._held: Counter[int] = Counter()
        self._newest: dict[int, int] = {}
        self.limit = 0
        self.expires = False
        self.journal = journal or Journal()
        self.journal.undone.append(self._recount)

    # -- looking ---------------------------------------------------------------------------------

    def tier_of(self, slot: int) -> int:
        """Position in `tiers` of the tier that a slot belongs to."""
        return next(i for i, tier in enumerate(self.tiers) if slot < tier.end)

    def free(self, tier: int) -> int:
        """Empty slots of a tier."""
        return len(self._free[tier])

    def held(self, tier: int) -> torch.Tensor:
        """Slots `[n]` of a tier that hold a block, upwards."""
        at = self.tiers[tier]
        return at.first + (self.owner[at.first : at.end] != NO_SESSION).nonzero()[:, 0]

    def below(self, tier: int) -> bool:
        """Whether any tier under this one holds a block."""
        return any(self.free(i) < self.tiers[i].slots for i in range(tier + 1, len(self.tiers)))

    def blocks_of(self, session: int) -> int:
        """Blocks that a session has stored."""
        return self._held[session]

    def slots_of(self, session: int | None) -> torch.Tensor:
        """Slots `[n]` of a session's blocks, or of all, in the order of their numbers."""
        mine = self.owner != NO_SESSION if session is None else self.owner == session
        slots = mine.nonzero()[:, 0]
        return slots[self.number[slots].argsort()]

    def newest(self, session: int) -> int:
        """Slot of the session's last block; -1 where that is no longer stored."""
        return self._newest.get(session, -1)

    def last_number(self, session: int) -> int:
        """Number of the block that the session's next one follows; 0 for none."""
        slot = self.newest(session)
        return 0 if slot < 0 else int(self.number[slot])

    def due(self, now: float) -> torch.Tensor:
        """Slots `[n]` whose deadline has passed."""
        # Asked before every write: without any deadline it costs nothing.
        if not self.expires:
            return torch.empty(0, dtype=torch.int64)
        return (self.deadline <= now).nonzero()[:, 0]

    def changed_since(self, changes: int) -> list[tuple[int, int]]:
        """Half-open ranges of slots that came to hold something since `changes` was this."""
        if changes == self.changes:
            return []
        return ranges_of((self._stamp[: self.limit] > changes).nonzero()[:, 0])

    def check_pins(self, slots: torch.Tensor) -> None:
        """Raises ValueError where pinning these would pin more than half of a tier."""
        pinned = self.pinned.clone()
        pinned[slots] = True
        for tier in self.tiers:
            count = int(pinned[tier.first : tier.end].sum())
            if count > tier.slots // 2:
                raise ValueError(
                    f"pin: at most {tier.slots // 2} blocks of the tier {tier.name!r}, half of it, "
                    f"can be pinned, got {count}"
                )

    # -- changing --------------------------------------------------------------------------------

    # What is new in a slot is taken back by blanking it: nothing was there before.

    def take(self, tier: int, count: int) -> torch.Tensor:
        """The lowest `count` empty slots of a tier; there must be as many."""
        self.journal.note(self._recount)
        return torch.tensor([heapq.heappop(self._free[tier]) for _ in range(count)])

    def claim(self, slots: torch.Tensor) -> None:
        """Take the given empty slots."""
        self.journal.note(self._recount)
        # Nothing was ever written: the lists are sorted, and heaps still without some entries.
        taken = set(slots.tolist())
        self._free = [[slot for slot in free if slot not in taken] for free in self._free]

    def fill(
        self,
        slots: torch.Tensor,
        sessions: Sequence[int],
        numbers: torch.Tensor,
        born: float | torch.Tensor,
        lifetimes: Sequence[float] | None = None,
    ) -> None:
        """Note new blocks in slots that were taken, in the order of their text.

        `born`: seconds since the epoch, one number or `[n]`; `lifetimes`: seconds from then on
        until each is to be forgotten, None: for ever.
        """
        self.journal.note(lambda: self._blank(slots))
        self.journal.item(self._newest, *sessions)
        self.owner[slots] = torch.tensor(sessions, dtype=torch.int64)
        self.number[slots], self.born[slots] = numbers, born
        self.deadline[slots], self.pinned[slots] = math.inf, False
        if lifetimes is not None:
            self.let_expire(slots, self.born[slots] + torch.tensor(lifetimes, dtype=torch.float64))
        self._note(slots)
        for slot, session in zip(slots.tolist(), sessions, strict=True):
            self._held[session] += 1
            self._newest[session] = slot

    def let_expire(self, slots: torch.Tensor, deadline: torch.Tensor) -> None:
        """Note when blocks are to be forgotten, `[n]` float64 seconds since the epoch."""
        self.journal.rows(self.deadline, slots)
        self.journal.attributes(self, "expires")
        self.deadline[slots] = deadline
        self.expires |= bool((deadline < math.inf).any())

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Note that blocks went from one slot to another, which was taken."""
        self.journal.note(lambda: self._blank(target))
        self.journal.item(self._newest, *self.owner[source].tolist())
        for column in self._columns():
            column[target] = column[source]
        self._note(target)
        for session, old, new in zip(
            self.owner[target].tolist(), source.tolist(), target.tolist(), strict=True
        ):
            if self._newest.get(session) == old:
                self._newest[session] = new
        self._release(source)

    def swap(self, slot: int, other: int) -> None:
        """Note that the blocks of two slots changed places."""
        both = torch.tensor([slot, other])
        self.journal.item(self._newest, *self.owner[both].tolist())
        for column in self._columns():
            self.journal.rows(column, both)
            column[both] = column[both.flip(0)]
        other_place = {slot: other, other: slot}
        for session in set(self.owner[both].tolist()):
            if self.newest(session) in other_place:
                self._newest[session] = other_place[self.newest(session)]
        self._note(both)

    def follow(self, session: int, slot: int) -> None:
        """Note which block the session's next one follows, -1 for none."""
        self.journal.item(self._newest, session)
        self._newest.pop(session, None)
        if slot >= 0:
            self._newest[session] = slot

    def hand_over(self, slots: torch.Tensor, session: int) -> None:
        """Note that all blocks of one session belong to another now, behind those it has."""
        owner = int(self.owner[slots[0]])
        self.journal.item(self._newest, owner, session)
        self.journal.rows(self.owner, slots)
        newest = self.newest(owner)
        for slot in slots.tolist():
            self._leave(int(self.owner[slot]), slot)
            self._held[session] += 1
        # The session's next block follows the text that was put behind its own.
        self.owner[slots] = session
        self._newest[session] = newest
        self._note(slots)

    def empty(self, slots: torch.Tensor) -> None:
        """Note that slots hold nothing any more."""
        owners = self.owner[slots].tolist()
        self.journal.item(self._newest, *owners)
        self.journal.note(self._recount)
        for slot, session in zip(slots.tolist(), owners, strict=True):
            self._leave(session, slot)
        self._release(slots)
        self.changes += 1

    def clean(self, slots: torch.Tensor) -> None:
        """Note that nothing is left in slots of what was there."""
        self.journal.rows(self.dirty, slots)
        self.dirty[slots] = False
        self.unsettled = bool(self.dirty.any())

    def soil(self, slots: torch.Tensor) -> None:
        """Note that something is left in slots of what was there."""
        self.unsettled = True
        self.dirty[slots] = True

    # -- inside ----------------------------------------------------------------------------------

    def _columns(self) -> tuple[torch.Tensor, ...]:
        return self.owner, self.number, self.born, self.deadline, self.pinned

    def _note(self, slots: torch.Tensor) -> None:
        self.journal.attributes(self, "limit")
        self.changes += 1
        self._stamp[slots] = self.changes
        self.limit = max(self.limit, int(slots.max()) + 1 if len(slots) else 0)

    def _leave(self, session: int, slot: int) -> None:
        self._held[session] -= 1
        if not self._held[session]:
            del self._held[session]
        if self._newest.get(session) == slot:
            del self._newest[session]

    def _release(self, slots: torch.Tensor) -> None:
        for column in (*self._columns(), self.dirty):
            self.journal.rows(column, slots)
        self._blank(slots)
        self.soil(slots)
        for slot in slots.tolist():
            heapq.heappush(self._free[self.tier_of(slot)], slot)

    def _blank(self, slots: torch.Tensor) -> None:
        self.owner[slots], self.number[slots], self.born[slots] = NO_SESSION, 0, 0.0
        self.deadline[slots], self.pinned[slots] = math.inf, False

    def _recount(self) -> None:
        """Derive again, where a change was taken back, what follows from the columns."""
        held = self.owner != NO_SESSION
        self._held = Counter(self.owner[held].tolist())
        self._free = [
            (tier.first + (~held[tier.first : tier.end]).nonzero()[:, 0]).tolist()
            for tier in self.tiers
        ]
        self.unsettled = bool(self.dirty.any())
        # Whoever keeps copies may have looked in between: everything counts as changed.
        self.changes += 1
        self._stamp.fill_(self.changes)


def ranges_of(numbers: torch.Tensor) -> list[tuple[int, int]]:
    """Half-open ranges of numbers `[n]` that lie side by side; they come upwards."""
    if not len(numbers):
        return []
    runs = torch.tensor_split(numbers, (numbers.diff() > 1).nonzero()[:, 0] + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]
