"""Tidying a memory up: what expired goes, what stands twice is merged, what is used rises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from cmr.integration.core import Core
from cmr.memory.duplicates import Duplicates, merged, near_duplicates
from cmr.memory.sessions import NO_SESSION
from cmr.memory.slot_ledger import Tier

Alone = Callable[[], AbstractContextManager[None]]
Between = Callable[[], object]

# Blocks that are emptied before others get their turn.
EMPTIED = 32


def no_wait() -> None:
    """Between two pieces nobody is waited for."""


@dataclass(frozen=True)
class ConsolidationReport:
    """What one `consolidate` did.

    Attributes:
        expired: blocks whose time was over.
        merged: blocks that went because their text is stored a second time.
        risen: blocks that went up a tier because they were recalled.
    """

    expired: int
    merged: int
    risen: int


def consolidate(core: Core, alone: Alone, between: Between = no_wait) -> ConsolidationReport:
    """Tidy up; see `Memory.consolidate`.

    `alone` lets the decoder's hooks rest, where a passage is run through the model again, and
    `between` is called in front of each piece, without the lock.
    """
    ring = core.ring
    # The lock is held for one piece at a time: others may use the memory between two, and each
    # piece looks whether the blocks that it is about are still what they were.
    with core.lock:
        core.identity.require()
        # What is recalled from here on counts the next time.
        began = ring.tick()
        expired = core.keeper.expire()
    gone = _merge(core, between)
    tiers = range(1, len(ring.ledger.tiers))
    risen = sum(_rise(core, alone, between, tier) for tier in tiers)
    with core.lock:
        core.consolidated = began
    return ConsolidationReport(expired, gone, risen)


def _merge(core: Core, between: Between) -> int:
    """Empty blocks whose whole text the session stored again."""
    ring = core.ring
    names = ("token_ids", "positions", "session", "created", "successor")
    with core.lock:
        began = ring.ledger.changes
        if core.merged == began:  # nothing was stored or moved since no copy was left
            return 0
        everywhere = torch.arange(ring.high_water)
        found = _columns(core, names, everywhere)

    def states(slots: torch.Tensor) -> torch.Tensor:
        between()
        with core.lock:
            return ring.states(slots)

    # Of slots that change meanwhile this may find anything: such pairs are left out below.
    pairs, gone = near_duplicates(states, *found.values()), 0
    owners = found["session"][pairs.earlier]
    # Pairs of two sessions have no block in common, so each session is planned by itself.
    for session in owners.unique().tolist():
        mine = Duplicates(*(column[owners == session] for column in pairs))
        goes, numbers = _plan(core, mine, found["created"])
        for part in torch.arange(len(goes)).split(EMPTIED):
            if between() is False:
                return gone
            with core.lock:
                slots = goes[part][ring.ledger.number[goes[part]] == numbers[part]]
                ring.empty(slots)
            gone += len(slots)
    if not gone:
        core.merged = began
    return gone


def _plan(
    core: Core, pairs: Duplicates, created: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let blocks that stay take over from those that go; slots `[k]` of these, and their numbers.

    The pairs are of one session, found when the slots held blocks of the numbers `created` `[n]`.
    """
    ring = core.ring
    with core.lock:
        there = ring.ledger.number[: len(created)] == created
        # Of pairs found without the lock, only those whose blocks all still are where they were.
        same = there[pairs.earlier] & there[pairs.later]
        same &= (pairs.second < 0) | there[pairs.second]
        pairs = Duplicates(*(column[same] for column in pairs))
        at = torch.cat(pairs[:3]).unique()
        at = at[at >= 0]
        first, later, second = (
            torch.where(slots < 0, slots, torch.searchsorted(at, slots)) for slots in pairs[:3]
        )
        local = Duplicates(first, later, second, pairs.similarity)
        now = _columns(core, ("created", "access_count", "last_access", "relevance"), at)
        plan = merged(local, **now, pinned=ring.ledger.pinned[at])
        here = at.to(ring.device)
        ring.access_count[here] = plan.access_count.to(ring.device)
        ring.last_access[here] = plan.last_access.to(ring.device)
        ring.relevance[here] = plan.relevance.to(ring.device)
    return at[plan.goes], now["created"][plan.goes]


def _columns(core: Core, names: Sequence[str], slots: torch.Tensor) -> dict[str, torch.Tensor]:
    """What columns hold of some slots, copied to the CPU."""
    columns, at = core.ring.columns._asdict(), slots.to(core.ring.device)
    return {name: columns[name][at].cpu() for name in names}


def _rise(core: Core, alone: Alone, between: Between, tier: int) -> int:
    """Blocks of a tier that were recalled since the last time go up one, for others to sink."""
    ring, ledger = core.ring, core.ring.ledger
    at = ledger.tiers[tier]

    def recalled() -> torch.Tensor:
        used = ring.last_access[at.first : at.end].cpu() >= max(1, core.consolidated)
        return used & (ledger.owner[at.first : at.end] != NO_SESSION)

    yields = lambda slot, other: _older(core, other, slot)  # noqa: E731
    return _up(core, alone, between, tier, recalled, yields)


def lift(core: Core, session: int, alone: Alone, between: Between = no_wait) -> int:
    """Bring a session's blocks up; see `Memory.lift`. Holds `core.lock` for a block at a time."""
    ledger = core.ring.ledger
    with core.lock:
        core.identity.require()
    risen = 0
    # From the lowest tier on, so that a block may go up more than one.
    for tier in reversed(range(1, len(ledger.tiers))):
        at = ledger.tiers[tier]

        def own(at: Tier = at) -> torch.Tensor:
            return ledger.owner[at.first : at.end] == session

        yields = lambda _, other: int(ledger.owner[other]) != session  # noqa: E731
        risen += _up(core, alone, between, tier, own, yields)
    return risen


def _older(core: Core, other: int, slot: int) -> bool:
    """Whether the block of one slot was used longer ago than that of another."""
    used = core.ring.last_access
    return bool(used[other] < used[slot])


def _up(
    core: Core,
    alone: Alone,
    between: Between,
    tier: int,
    chosen: Callable[[], torch.Tensor],
    yields: Callable[[int, int], bool],
) -> int:
    """Blocks go up one tier, those used last before others, until half a tier has come.

    `chosen` says which slots of the tier are theirs, `yields` whether the block in its second slot
    may sink for the one in the first.
    """
    ring, ledger = core.ring, core.ring.ledger
    with core.lock:
        slots = ledger.tiers[tier].first + chosen().nonzero()[:, 0]
        # What keeps no states is run through the model again, which gives keys and values alone:
        # of blocks that store hidden states, those without any stay where they are.
        if core.layout.store == "states":
            slots = slots[ring.keeps_states(slots)]
        used = ring.last_access[slots.to(ring.device)].cpu()
        most = max(1, ledger.tiers[tier - 1].slots // 2)
        slots = slots[used.argsort(descending=True, stable=True)[:most]]
        numbers = ledger.number[slots].tolist()
    return one_by_one(
        core, slots, numbers, between, lambda slot: _one_up(core, alone, tier, slot, yields)
    )


def one_by_one(
    core: Core,
    slots: torch.Tensor,
    numbers: Sequence[int],
    between: Between,
    done: Callable[[int], int],
) -> int:
    """Something is done with blocks, the lock held for each alone; the sum of what `done` gives.

    `numbers` are those of the blocks when they were chosen; `between` says when to leave off.
    """
    total = 0
    for slot, number in zip(slots.tolist(), numbers, strict=True):
        if between() is False:
            break
        with core.lock:
            # The slot may hold another block by now.
            if int(core.ring.ledger.number[slot]) == number:
                total += done(slot)
    return total


def _one_up(
    core: Core, alone: Alone, tier: int, slot: int, yields: Callable[[int, int], bool]
) -> bool:
    """Let the block in a slot go up one tier; whether it did."""
    ring, ledger = core.ring, core.ring.ledger
    other = -1
    if not ledger.free(tier - 1):
        other = core.keeper.least_used(tier - 1, int(ledger.owner[slot]))
        if other < 0 or not yields(slot, other):
            return False
    one = torch.tensor([slot])
    wanted = [name for name in ring.parts[tier - 1] if name.startswith(("keys.", "values."))]
    states = {}
    # A lower tier may keep token ids alone: what the upper one has besides is made again.
    if wanted and not bool(ring.keeps_states(one)):
        with alone():
            layers = core.recomputed.get(one[:, None])[0]
        for name in wanted:
            part, layer = name.split(".")
            states[name] = layers[int(layer)][part == "values"]
    with ring.journal.change():
        if other < 0:
            ring.move(one, ring.take(tier - 1, 1), states)
        else:
            ring.swap(slot, other, states)
    return True
