"""What stays, what sinks into the next tier and what leaves: the policy above a block store."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cmr.errors import ConfigError
from cmr.memory.batch import BlockBatch, check_layers
from cmr.memory.block_store import BlockStore
from cmr.memory.eviction import Candidates, choose_victims
from cmr.memory.journal import all_or_nothing
from cmr.memory.sessions import SessionTable

# A number that no session has, to ask what one more session would get.
NEW = -2


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
    """Makes room for what is to be stored and enforces the sessions' limits and lifetimes.

    What has to leave a tier sinks into the next one, and out of the last one it is gone. `sessions`
    says which sessions are ephemeral and how long they live; None: none has such terms.

    Attributes:
        policy: how room is made; another one may be set.
        evicted: blocks that had to go for others.
        sunk: blocks that went down a tier for others.
        expired: blocks whose time was over.
        on_expired: told the sessions of blocks whose time was over, to drop copies of them.
    """

    def __init__(
        self, blocks: BlockStore, policy: Policy | None = None, sessions: SessionTable | None = None
    ) -> None:
        self.blocks, self._ledger, self.journal = blocks, blocks.ledger, blocks.journal
        self.policy, self._sessions = policy or Policy(), sessions
        self.evicted = self.sunk = self.expired = 0
        self.on_expired: Callable[[set[int]], None] | None = None
        # When the time is over of blocks that were evicted, and whose they were.
        self._copies_due: list[tuple[float, int]] = []

    def write(self, batch: BlockBatch) -> torch.Tensor:
        """Store blocks, having made room; returns the slots, `[n]` int64, that they went into.

        Where more come than the first tier holds, the earlier ones have left it by then. ValueError
        for more blocks than there are slots, or for a layer that is missing: nothing is written
        then; and where everything that could leave is pinned.
        """
        n, blocks = len(batch.sessions), self.blocks
        if n > blocks.slots:
            raise ValueError(f"at most {blocks.slots} blocks fit into the buffer, got {n} at once")
        # Before room is made: a batch that is refused must not have cost anything.
        check_layers(batch.layers, blocks.keys, blocks.values)
        # What is over anyway must not cost another block its place.
        self.expire()
        return self._write(batch)

    @all_or_nothing
    def _write(self, batch: BlockBatch) -> torch.Tensor:
        n = len(batch.sessions)
        pick = torch.arange(n) if batch.pick is None else batch.pick
        written, done = [torch.empty(0, dtype=torch.int64)], 0
        while done < n:
            room = self._make_room(batch.sessions[done:])
            part = slice(done, done + room)
            turns = None if batch.turns is None else batch.turns.part(part)
            piece = replace(batch, sessions=batch.sessions[part], pick=pick[part], turns=turns)
            written.append(self.blocks.add(piece, [self.lifetime(s) for s in piece.sessions]))
            done += room
        return torch.cat(written)

    def _make_room(self, sessions: Sequence[int]) -> int:
        """Room in the first tier for new blocks of these sessions, in the order of writing.

        Returns how many of them, at least one, can be written; the rest wants room again.
        """
        count = min(len(sessions), self._ledger.tiers[0].slots)
        if self.policy.session_blocks is not None:
            count = min(count, self.policy.session_blocks)
            self._hold_to_limit(Counter(sessions[:count]), self.policy.session_blocks)
        return min(count, self.room_in(0, Counter(sessions[:count])))

    @all_or_nothing
    def room_in(self, tier: int, incoming: Mapping[int, int]) -> int:
        """Room in a tier, by sending blocks down or away; ConfigError where nothing may leave.

        `incoming`: session number to how many blocks it is about to bring. Returns for how many
        there is room: it may be fewer than all of them, but one at least.
        """
        victims = self._victims(tier, incoming)
        if len(victims):
            self._send_down(tier, victims)
        free = self._ledger.free(tier)
        if not free:
            name = self._ledger.tiers[tier].name
            raise ConfigError(
                f"budget: no room for new blocks in the tier {name!r}: what is in it is pinned, "
                "or belongs to sessions that hold no more than their share"
            )
        return free

    def plan(
        self, wanted: Sequence[torch.Tensor], ephemeral: bool = False
    ) -> tuple[list[torch.Tensor], int]:
        """Where blocks of new sessions can go: into the tier wanted, or a lower one.

        `wanted` has for each tier the blocks `[n]` that are wanted there, the first ones with the
        first claim; likewise those that can go there are given, and how many can go nowhere.
        Ephemeral blocks may be in the first tier only. Nothing is changed. Whoever makes the room
        does so from the last tier up: what sinks must not take what was made already.
        """
        # As a session that has nothing yet: it may take what others hold above their share.
        plan, left = [], wanted[0][:0]
        for tier, here in enumerate(wanted):
            left = torch.cat([here, left])
            room = 0
            if not (ephemeral and tier):
                room = self._ledger.free(tier) + len(self._victims(tier, {NEW: len(left)}))
            plan.append(left[:room])
            left = left[room:]
        return plan, len(left)

    def least_used(self, tier: int, session: int) -> int:
        """The block of a tier that may sink for one of the session's to rise; its slot or -1."""
        found = self._victims(tier, {session: self._ledger.free(tier) + 1})
        ephemeral = [self._terms(owner)[0] for owner in self._ledger.owner[found].tolist()]
        able = found[~torch.tensor(ephemeral, dtype=torch.bool)]
        return int(able[0]) if len(able) else -1

    def lifetime(self, session: int) -> float:
        """Seconds after which what the session stores is to be forgotten; `inf` for never."""
        lifetime = self._terms(session)[1]
        return math.inf if lifetime is None else lifetime

    def expire(self) -> int:
        """Zero every block whose time is over; returns how many."""
        now = time.time()
        due, owners = self._ledger.due(now), set()
        while self._copies_due and self._copies_due[0][0] <= now:
            owners.add(heapq.heappop(self._copies_due)[1])
        if owners and self.on_expired is not None:
            self.on_expired(owners)
        if len(due):
            self._forget(due)
        return len(due)

    # -- inside ----------------------------------------------------------------------------------

    @all_or_nothing
    def _forget(self, due: torch.Tensor) -> None:
        owners = set(self._ledger.owner[due].tolist())
        self.blocks.empty(due)
        self.journal.attributes(self, "expired")
        self.expired += len(due)
        # Inside of the change: copies are let go of before it counts, not after.
        if self.on_expired is not None:
            self.on_expired(owners)

    def _terms(self, session: int) -> tuple[bool, float | None]:
        return (False, None) if self._sessions is None else self._sessions.terms(session)

    def _hold_to_limit(self, incoming: Mapping[int, int], limit: int) -> None:
        """Sessions pay for what they write above their limit, from the lowest tier up."""
        self.journal.attributes(self, "evicted")
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
                self._evict(mine[found])
                over -= len(found)

    def _victims(self, tier: int, incoming: Mapping[int, int]) -> torch.Tensor:
        """Slots `[n]` that have to give way in a tier; none where there is room."""
        count, at = sum(incoming.values()), self._ledger.tiers[tier]
        need = count - self._ledger.free(tier)
        # The usual case of a store that is not full: nothing is sorted, nothing is looked at.
        if need <= 0:
            return torch.empty(0, dtype=torch.int64)
        held = self._ledger.held(tier)
        most = max(1, int(at.slots * self.policy.keep_share))
        need = max(need, len(held) + count - most) if most < at.slots else need
        # Only out of the last tier a block is lost, so only there relevance decides; above it what
        # was used last stays near.
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

    def _evict(self, slots: torch.Tensor) -> None:
        ledger = self._ledger
        if ledger.expires:
            # Forwards may have copies of it still when its time is over.
            for at in slots[ledger.deadline[slots] < math.inf].tolist():
                due = float(ledger.deadline[at]), int(ledger.owner[at])
                heapq.heappush(self._copies_due, due)
        self.blocks.empty(slots)
        self.evicted += len(slots)

    def _send_down(self, tier: int, slots: torch.Tensor) -> None:
        self.journal.attributes(self, "evicted", "sunk")
        below = tier + 1
        if below == len(self._ledger.tiers):
            self._evict(slots)
            return
        owners = self._ledger.owner[slots].tolist()
        # What is ephemeral never leaves the first tier.
        stays = torch.tensor([self._terms(owner)[0] for owner in owners], dtype=torch.bool)
        self._evict(slots[stays])
        slots = slots[~stays]
        # Piece by piece: more may sink at once than the tier below holds, and each piece makes
        # room for itself further down before it moves.
        while len(slots):
            part = slots[: self._ledger.tiers[below].slots]
            coming = Counter(self._ledger.owner[part].tolist())
            self._send_down(below, self._victims(below, coming))
            part = part[: self._ledger.free(below)]
            if not len(part):  # nothing there may leave
                self._evict(slots)
                return
            self.blocks.move(part, self.blocks.take(below, len(part)))
            self.sunk += len(part)
            slots = slots[len(part) :]

    def _candidates(self, slots: torch.Tensor) -> Candidates:
        """What eviction looks at."""
        ledger, columns = self._ledger, self.blocks.columns
        # The ledger knows ages. For anything else the device is asked, which waits for it.
        if self.policy.strategy == "oldest" and self.policy.threshold is None:
            used = counts = torch.zeros(len(slots), dtype=torch.int64)
            relevance = torch.zeros(len(slots))
        else:
            at = slots.to(columns.session.device)
            used, counts, relevance = (
                column[at].cpu()
                for column in (columns.last_access, columns.access_count, columns.relevance)
            )
        return Candidates(
            owner=ledger.owner[slots],
            created=ledger.number[slots],
            last_access=used,
            access_count=counts,
            relevance=relevance,
            pinned=ledger.pinned[slots],
        )
