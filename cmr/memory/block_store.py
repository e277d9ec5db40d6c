"""The preallocated store of whole blocks: arrays over one space of slots, in tiers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cmr.kernels.ring_link import Reserved, ring_link
from cmr.kernels.ring_write import ring_write_index
from cmr.kernels.search.recalled import Used
from cmr.kernels.upload import numbers_on, uploaded
from cmr.memory.batch import BlockBatch, write_layers
from cmr.memory.journal import all_or_nothing
from cmr.memory.sessions import NO_SESSION
from cmr.memory.tier_tensors import NO_SLOT, TierTensors

_DROPPED_AT_ONCE = 1024


class BlockStore(TierTensors):
    """Whole blocks of tokens in preallocated tensors.

    New blocks go into the first tier; who puts them there makes room for them before, see `Keeper`.
    A block keeps its number for life, whichever slot it is in. Whatever changes the store happens
    or does not, see `cmr.memory.journal`; several changes are one inside of `journal.change()`.
    What is left in a slot of a block that is gone is zeroed when that has happened for good.

    Attributes:
        clock: blocks ever written.
        on_change: told the slots, `[n]` int64 on the CPU, whose blocks are about to leave them. It
            may look at them and must not change anything. None: nobody is told.
    """

    clock = _start = 0
    on_change: Callable[[torch.Tensor], None] | None = None

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.journal.settle.append(self.settle)

    # -- size ------------------------------------------------------------------------------------

    @property
    def written(self) -> int:
        """Blocks written since the buffer was last empty."""
        return self.clock - self._start

    @property
    def high_water(self) -> int:
        """Slots from 0 on that were ever written: what a search has to look at."""
        return self.ledger.limit

    @property
    def nbytes(self) -> int:
        """Bytes of all preallocated tensors, those in files included."""
        return sum(int(tier["bytes"]) for tier in self.tier_stats().values())

    def tier_stats(self) -> dict[str, dict[str, int | float]]:
        """Tier name to its blocks, capacity in blocks, bytes, and bytes of a token that it fits."""
        found: dict[str, dict[str, int | float]] = {}
        for number, tier in enumerate(self.ledger.tiers):
            columns = [column[tier.first : tier.end] for column in self._slot_columns()]
            tensors = [*self.parts[number].values(), *columns]
            size = sum(t.numel() * t.element_size() for t in tensors)
            found[tier.name] = {
                "blocks": len(self.ledger.held(number)),
                "capacity_blocks": tier.slots,
                "bytes": size,
                "bytes_per_token": size / (tier.slots * self.block_size),
            }
        return found

    def blocks_of(self, session: int) -> int:
        """Number of blocks that the session has stored."""
        return self.ledger.blocks_of(session)

    def has(self, sessions: Sequence[int]) -> bool:
        """Whether any of the sessions has a stored block. Host only: no device sync."""
        return any(self.ledger.blocks_of(s) for s in sessions)

    def stored_tokens(self, session: int | None = None) -> int:
        """Stored tokens without padding. Reads the device: for people, not for the hot path."""
        own = self.session != NO_SESSION if session is None else self.session == session
        return int(((self.positions >= 0) & own[:, None]).sum())

    def about(self, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is known of the blocks in some slots `[n]`, as it is saved: columns on the CPU."""
        ledger, at = self.ledger, slots.to(self.device)
        before = self.predecessor[at].cpu()
        tier = torch.zeros(len(slots), dtype=torch.int64)
        for number, held in enumerate(ledger.tiers):
            tier[held.holds(slots)] = number
        return {
            "slot": slots,
            "tier": tier,
            # By number: slots are those of this store alone.
            "before": torch.where(before >= 0, ledger.number[before.clamp(min=0)], -1),
            "token_ids": self.token_ids[at].to(torch.int32).cpu(),
            "positions": self.positions[at].cpu(),
            "last_access": self.last_access[at].cpu(),
            "access_count": self.access_count[at].cpu(),
            "relevance": self.relevance[at].cpu(),
            "time": ledger.born[slots],
            "deadline": ledger.deadline[slots],
            "flags": ledger.pinned[slots].to(torch.int64),
        }

    # -- writing ---------------------------------------------------------------------------------

    @all_or_nothing
    def add(self, batch: BlockBatch, lifetimes: Sequence[float] | None = None) -> torch.Tensor:
        """Store blocks in the first tier; returns the slots, `[n]` int64, that they went into.

        The batch was checked, and there is room. `lifetimes`: seconds after which each block is to
        be forgotten, `inf` for never.
        """
        n, born = len(batch.sessions), time.time()
        device, ledger = self.device, self.ledger
        slots = self.take(0, n)
        numbers = torch.arange(self.clock + 1, self.clock + n + 1)
        # Blocks of one session in one batch follow each other, the first of them its newest one.
        before: dict[int, int] = {}
        chain, turns = [], batch.turns
        for slot, session in zip(slots.tolist(), batch.sessions, strict=True):
            chain.append(before.get(session, ledger.newest(session)))
            before[session] = slot
        if turns is not None:
            chain = [NO_SLOT if new else at for at, new in zip(chain, turns.begins, strict=True)]
        self.count_on(n)
        followed = torch.tensor([slot for slot in chain if slot >= 0], dtype=torch.int64)
        self.journal.rows(self.successor, uploaded(followed, device))
        pick = torch.arange(n) if batch.pick is None else batch.pick
        *there, pick, owners = numbers_on(device, slots, chain, numbers, pick, batch.sessions)
        reserved = Reserved(*there)
        write_layers(self.together, reserved.slots, pick, batch.layers)
        ring_write_index(self.index, None, reserved.slots, pick, batch.index.to(device))
        if turns is not None and min(turns.weights) < 1.0:
            weights = uploaded(torch.tensor(turns.weights, dtype=self.index.dtype), device)
            self.index[reserved.slots] *= weights[:, None, None]
        ring_link(
            self.columns,
            reserved,
            owners,
            batch.token_ids.to(device),
            uploaded(batch.positions, device),
            None if batch.relevance is None else batch.relevance.to(device),
            pick,
        )
        ledger.fill(slots, batch.sessions, numbers, born, lifetimes)
        return slots

    @all_or_nothing
    def take(self, tier: int, count: int) -> torch.Tensor:
        """The lowest `count` empty slots of a tier, `[n]` int64; there must be as many."""
        return self._to_be_written(self.ledger.take(tier, count))

    @all_or_nothing
    def claim(self, slots: torch.Tensor) -> None:
        """Take the given empty slots of a store into which nothing was ever written."""
        self.ledger.claim(slots)
        self._to_be_written(slots)

    def _to_be_written(self, slots: torch.Tensor) -> torch.Tensor:
        """Note what slots that were taken have in them, before it is overwritten."""
        # What was empty is soiled where that is taken back, and so zeroed, its columns too.
        dirty = self.ledger.dirty[slots]
        fresh, soiled = slots[~dirty], slots[dirty]
        self.journal.note(lambda: self.ledger.soil(fresh))
        if len(soiled):
            # A block that went for this very change comes back where the change is taken back.
            before = self.rows(soiled)
            self.journal.note(lambda: self.put(soiled, before))
            self.ledger.clean(soiled)
        return slots

    # -- moving ----------------------------------------------------------------------------------

    @all_or_nothing
    def move(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        states: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Take blocks from slots of one tier into those of another, which the ledger gave.

        `states`: parts that its tier has and the source's has not. The old slots are zeroed.
        """
        if not len(source):
            return
        # Whoever saves copies what it still needs before it is gone from there.
        self._tell(source)
        self.put(target, self.rows(source) | dict(states or {}))
        old, new = source.to(self.device), target.to(self.device)
        for column in self._slot_columns():
            self.journal.rows(column, old)
            column[new] = column[old]
        self._relink(old, new)
        self.ledger.move(source, target)
        self._blank(source)

    @all_or_nothing
    def swap(self, slot: int, other: int, states: Mapping[str, torch.Tensor] | None = None) -> None:
        """Let the blocks of two slots in different tiers change places.

        `states`: parts `[1, ...]` of the first block that the other's tier has and its own has not.
        """
        pair = torch.tensor([slot, other])
        self._tell(pair)
        one, two = self.rows(pair[:1]), self.rows(pair[1:])
        self.journal.note(lambda: self.put(pair[:1], one))
        self.journal.note(lambda: self.put(pair[1:], two))
        self.put(pair[1:], one | dict(states or {}))
        self.put(pair[:1], two)
        both = pair.to(self.device)
        for column in self._slot_columns():
            self.journal.rows(column, both)
            column[both] = column[both.flip(0)]
        self._relink(both, both.flip(0))
        self.ledger.swap(slot, other)

    def _relink(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Let every link that leads to an old slot lead to the new one."""
        # A table over all slots instead of a search for each link: no question to the device.
        remap = torch.arange(self.slots, device=self.device)
        remap[old] = new
        for links in (self.successor, self.predecessor):
            self.journal.whole(links)
            links.copy_(torch.where(links >= 0, remap[links.clamp(min=0)], NO_SLOT))

    def _slot_columns(self) -> list[torch.Tensor]:
        return [column for column in self.columns if column is not self.cursor]

    def count_on(self, count: int) -> None:
        """Give so many numbers of blocks away."""
        before = self.clock
        self.journal.attributes(self, "clock")
        self.journal.note(lambda: self.cursor.fill_(before))
        self.clock += count
        self.cursor.fill_(self.clock)

    def new_numbers(self, count: int) -> torch.Tensor:
        """Numbers `[count]` int64 for blocks that are about to come in other ways than `write`."""
        self.count_on(count)
        return torch.arange(self.clock - count + 1, self.clock + 1)

    @all_or_nothing
    def copy(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        session: int,
        numbers: torch.Tensor,
        lifetime: float,
    ) -> None:
        """Copy blocks into slots that the ledger gave, of one tier, for another session.

        The copies are new blocks of the same age, in no chain. They live `lifetime` seconds from
        their originals' birth on, and no longer than these.
        """
        n, ledger = len(source), self.ledger
        for tier in ledger.tiers:
            here = tier.holds(source)
            if here.any():
                self.put(target[here], self.rows(source[here]))
        old, new = source.to(self.device), target.to(self.device)
        for column in self._slot_columns():
            column[new] = column[old]
        self.session[new] = session
        self.created[new] = numbers.to(self.device)
        self.successor[new] = self.predecessor[new] = NO_SLOT
        ledger.fill(target, [session] * n, numbers, ledger.born[source], [lifetime] * n)
        # Text that was to be forgotten at some time is not kept longer by a copy of it.
        ledger.let_expire(target, torch.minimum(ledger.deadline[target], ledger.deadline[source]))

    @all_or_nothing
    def hand_over(self, slots: torch.Tensor, session: int, shift: int) -> None:
        """Give blocks to another session, `shift` positions further on in its text."""
        if len(slots):
            at = slots.to(self.device)
            self.journal.rows(self.session, at)
            self.journal.rows(self.positions, at)
            self.session[at] = session
            placed = self.positions[at]
            self.positions[at] = torch.where(placed >= 0, placed + shift, placed)
            self.ledger.hand_over(slots, session)

    def places(self, slots: torch.Tensor) -> torch.Tensor:
        """Positions `[n]` of all tokens in some slots, on the CPU."""
        held = self.positions[slots.to(self.device)].cpu()
        return held[held >= 0]

    @property
    def used(self) -> Used:
        """Where a recall is counted, now."""
        return Used(self.access_count, self.last_access, self.clock)

    @all_or_nothing
    def tick(self) -> int:
        """The least `last_access` that a recall from now on gets: a number that no block has."""
        self.journal.attributes(self, "_start")
        self._start += 1
        return int(self.new_numbers(1))

    # -- forgetting ------------------------------------------------------------------------------

    @all_or_nothing
    def clear(self, session: int | None = None) -> int:
        """Zero every block of the session, or of all; returns how many blocks were emptied."""
        slots = self.ledger.slots_of(session)
        self.empty(slots)
        if session is None:
            self.journal.attributes(self, "_start")
            self.journal.attributes(self.ledger, "limit")
            # A block's number never comes twice: who still knows a block by its number must not
            # find another one in its slot.
            self._start = self.clock
            self.ledger.limit = 0
        return len(slots)

    @all_or_nothing
    def empty(self, slots: torch.Tensor) -> None:
        """Zero the blocks in some slots (on the CPU); chains that lead to them are cut."""
        if not len(slots):
            return
        self._tell(slots)
        # A neighbour's link must not lead to a slot that somebody else's block comes into.
        at = slots.to(self.device)
        for ahead, back in ((self.successor, self.predecessor), (self.predecessor, self.successor)):
            beside = ahead[at]
            beside = beside[beside >= 0]
            self.journal.rows(back, beside)
            back[beside] = NO_SLOT
        for column in self._slot_columns():
            self.journal.rows(column, at)
        self.ledger.empty(slots)
        self._blank(slots)

    def settle(self) -> None:
        """Zero what is left of blocks that are gone; done behind every change."""
        if self.ledger.unsettled and not self.journal.open:
            slots = self.ledger.dirty.nonzero()[:, 0]
            self._zero(slots)
            self.ledger.clean(slots)

    def begin_again(self) -> set[int]:
        """In the child of a fork: drop what the parent has in files, which is never shared.

        Returns the sessions that have lost blocks by it; raises StoreError where this process
        cannot have such files of its own.
        """
        self.on_change = None  # who saves is in the parent
        self._disk.renew()
        self.journal.recover()  # what a thread of the parent was in the middle of
        last = len(self.ledger.tiers) - 1
        if self.ledger.tiers[last].name != "long_term":
            return set()
        held = self.ledger.held(last)
        owners = set(self.ledger.owner[held].tolist())
        for piece in held.split(_DROPPED_AT_ONCE):
            self.empty(piece)
            self._disk.renew()  # zeros that were written take room, those of a new file none
        return owners

    def _tell(self, slots: torch.Tensor) -> None:
        if self.on_change is not None:
            self.on_change(slots)

    def _zero(self, slots: torch.Tensor) -> None:
        self._blank(slots)
        self.zero(slots)

    def _blank(self, slots: torch.Tensor) -> None:
        at = slots.to(self.device)
        # 0 is a session, a slot and a position: there "nothing" is -1.
        nowhere = (self.positions, self.session, self.successor, self.predecessor)
        for column in self._slot_columns():
            empty = -1 if any(column is other for other in nowhere) else 0
            column.index_fill_(0, at, empty)
