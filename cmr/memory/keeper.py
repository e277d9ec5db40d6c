"""What stays, what sinks into the next tier and what leaves: the policy of a ring buffer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cmr.memory.eviction import Candidates, choose_victims
from cmr.memory.sessions import NO_SESSION, SessionTable

if TYPE_CHECKING:
    from cmr.memory.block_store import RingBuffer


NEW = -2
"""A number that no session has, to ask what one more session would get."""


@dataclass(frozen=True)
class Policy:
    """How room is made.

    Attributes:
        strategy: what leaves the last tier first, see `cmr.memory.eviction.keep_scores`. Above it
            blocks sink in the order of their last use; with `oldest`, of their age.
        threshold: blocks of lower relevance leave before all others; None: no such limit.
        keep_share: share of a full tier that stays when room is made, in (0, 1]: 1 makes exactly as
            much as is needed, less makes more at once and so less often.
        session_blocks: blocks that a session may hold, over all tiers; None: no limit.
    """

    strategy: str = "oldest"
    threshold: float | None = None
    keep_share: float = 1.0
    session_blocks: int | None = None


class Keeper:
    """Makes room in a ring buffer and enforces its sessions' limits.

    Args:
        ring: the store.
        policy: how room is made.
        sessions: which sessions are ephemeral and how long they live; None: none has such terms.

    Attributes:
        evicted: blocks that left the store to make room.
        sunk: blocks that went down a tier.
        expired: blocks whose time was over.
        on_expired: told the sessions of blocks whose time was over, to drop copies of them.
    """

    def __init__(self, ring: RingBuffer, policy: Policy, sessions: SessionTable | None) -> None:
        self._ring, self._ledger = ring, ring.ledger
        self.policy, self._sessions = policy, sessions
        self.evicted = self.sunk = self.expired = 0
        self.on_expired: Callable[[set[int]], None] | None = None

    def make_room(self, sessions: Sequence[int]) -> int:
        """Room in the first tier for new blocks, as many as can go in now: at least one.

        Args:
            sessions: session number of each block, in the order they are to be written.

        Returns:
            How many of them can be written; the rest wants room again afterwards.

        Raises:
            ValueError: everything that could leave is pinned.
        """
        self.expire()
        count = min(len(sessions), self._ledger.tiers[0].slots)
        if self.policy.session_blocks is not None:
            count = min(count, self.policy.session_blocks)
            self._hold_to_limit(Counter(sessions[:count]), self.policy.session_blocks)
        self.room_in(0, Counter(sessions[:count]))
        return min(count, self._ledger.free(0))

    def room_in(self, tier: int, incoming: Mapping[int, int]) -> None:
        """Room in a tier for blocks of the given sessions, by sending others down or away.

        There may be room for fewer than all of them, but for one at least.

        Args:
            tier: position in the ledger's `tiers`.
            incoming: session number to how many blocks it is about to bring.

        Raises:
            ValueError: nothing may leave.
        """
        self._send_down(tier, self._victims(tier, incoming))
        if not self._ledger.free(tier):
            name = self._ledger.tiers[tier].name
            raise ValueError(
                f"no room for new blocks in the tier {name!r}: what is in it is pinned, or belongs "
                "to sessions that hold no more than their share"
            )

    def possible(self, tier: int, incoming: Mapping[int, int]) -> int:
        """For how many blocks `room_in` could make room; nothing is changed."""
        return self._ledger.free(tier) + len(self._victims(tier, incoming))

    def plan(
        self, wanted: Sequence[torch.Tensor], ephemeral: bool = False
    ) -> tuple[list[torch.Tensor], int]:
        """Where blocks of new sessions can go: into the tier wanted, or a lower one.

        Nothing is changed. Room in the tiers is to be made from the last one up: what sinks must
        not take what was made already.

        Args:
            wanted: for each tier the blocks `[n]` that are wanted there, whatever the numbers mean;
                the first ones have the first claim.
            ephemeral: whether they may be in the first tier only.

        Returns:
            For each tier the blocks that can go there, and how many can go nowhere.
        """
        plan, left = [], wanted[0][:0]
        for tier, here in enumerate(wanted):
            left = torch.cat([here, left])
            room = 0 if ephemeral and tier else self.possible(tier, {NEW: len(left)})
            plan.append(left[:room])
            left = left[room:]
        return plan, len(left)

    def least_used(self, tier: int, session: int) -> int:
        """The block of a tier that may sink for one of the session's to rise; its slot or -1."""
        found = self._victims(tier, {session: self._ledger.free(tier) + 1})
        ephemeral = [self._terms(owner)[0] for owner in self._ledger.owner[found].tolist()]
        able = found[~torch.tensor(ephemeral, dtype=torch.bool)]
        return int(able[0]) if len(able) else -1

    def deadline(self, session: int, born: float) -> float:
        """When a block of the session is to be forgotten, in seconds since the epoch."""
        lifetime = self._terms(session)[1]
        return float("inf") if lifetime is None else born + lifetime

    def expire(self) -> int:
        """Zero every block whose time is over; returns how many."""
        due = self._ledger.due(time.time())
        if len(due):
            owners = set(self._ledger.owner[due].tolist())
            self._ring.empty(due)
            self.expired += len(due)
            if self.on_expired is not None:
                self.on_expired(owners)
        return len(due)

    # -- inside ----------------------------------------------------------------------------------

    def _terms(self, session: int) -> tuple[bool, float | None]:
        return (False, None) if self._sessions is None else self._sessions.terms(session)

    def _hold_to_limit(self, incoming: Mapping[int, int], limit: int) -> None:
        """Sessions pay for what they write above their limit, from the lowest tier up."""
        for session, count in incoming.items():
            over = self._ledger.blocks_of(session) + count - limit
            for tier in reversed(range(len(self._ledger.tiers))):
                if over <= 0:
                    break
                held = self._ledger.held(tier)
                mine = held[self._ledger.owner[held] == session]
                found = choose_victims(
                    self._candidates(mine),
                    over,
                    strategy=self.policy.strategy,
                    threshold=self.policy.threshold,
                    capacity=limit,
                    incoming={session: count},
                )
                self._ring.empty(mine[found])
                self.evicted += len(found)
                over -= len(found)

    def _victims(self, tier: int, incoming: Mapping[int, int]) -> torch.Tensor:
        """Slots `[n]` that have to give way in a tier; none where there is room."""
        count, at = sum(incoming.values()), self._ledger.tiers[tier]
        need = count - self._ledger.free(tier)
        held = self._ledger.held(tier)
        if need <= 0:
            return held[:0]
        most = max(1, int(at.slots * self.policy.keep_share))
        need = max(need, len(held) + count - most) if most < at.slots else need
        last = tier + 1 == len(self._ledger.tiers)
        strategy = self.policy.strategy
        found = choose_victims(
            self._candidates(held),
            min(need, len(held)),
            strategy=strategy if last or strategy == "oldest" else "lru",
            threshold=self.policy.threshold if last else None,
            capacity=most,
            incoming=incoming,
        )
        return held[found]

    def _send_down(self, tier: int, slots: torch.Tensor) -> None:
        below = tier + 1
        if below == len(self._ledger.tiers):
            self._ring.empty(slots)
            self.evicted += len(slots)
            return
        owners = self._ledger.owner[slots].tolist()
        # What is ephemeral never leaves the first tier.
        stays = torch.tensor([self._terms(owner)[0] for owner in owners], dtype=torch.bool)
        self._ring.empty(slots[stays])
        self.evicted += int(stays.sum())
        slots = slots[~stays]
        while len(slots):
            part = slots[: self._ledger.tiers[below].slots]
            coming = Counter(self._ledger.owner[part].tolist())
            self._send_down(below, self._victims(below, coming))
            part = part[: self._ledger.free(below)]
            if not len(part):  # nothing there may leave
                self._ring.empty(slots)
                self.evicted += len(slots)
                return
            self._ring.move(part, self._ledger.take(below, len(part)))
            self.sunk += len(part)
            slots = slots[len(part) :]

    def _candidates(self, slots: torch.Tensor) -> Candidates:
        """What eviction looks at; the device is asked only where the strategy wants to know."""
        ledger, columns = self._ledger, self._ring.columns
        created, zeros = ledger.number[slots], torch.zeros(len(slots), dtype=torch.int64)
        if self.policy.strategy == "oldest" and self.policy.threshold is None:
            used = counts = zeros
            relevance = torch.zeros(len(slots))
        else:
            at = slots.to(columns.session.device)
            used = columns.last_access[at].cpu()
            counts = columns.access_count[at].cpu()
            relevance = columns.relevance[at].cpu()
        owner, pinned = ledger.owner[slots], ledger.pinned[slots]
        assert not bool((owner == NO_SESSION).any())
        return Candidates(owner, created, used, counts, relevance, pinned)
