"""Tidying a memory up: what expired goes, what stands twice is merged, what is used rises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cmr.integration.core import Core
from cmr.memory.novelty import merged, near_duplicates
from cmr.memory.sessions import NO_SESSION


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


def consolidate(core: Core) -> ConsolidationReport:
    """Tidy up; see `Memory.consolidate`. The decoder's hooks must rest meanwhile."""
    ring = core.ring
    expired = ring.keeper.expire()
    gone = _merge(core)
    risen = sum(_rise(core, tier) for tier in range(1, len(ring.ledger.tiers)))
    core.consolidated = ring.tick()
    return ConsolidationReport(expired, gone, risen)


def _merge(core: Core) -> int:
    """Empty blocks whose whole text the session stored again."""
    ring, ledger = core.ring, core.ring.ledger
    size = ring.high_water
    columns = {name: column[:size].cpu() for name, column in ring.columns._asdict().items()}
    pairs = near_duplicates(
        ring.states,
        columns["token_ids"],
        columns["positions"],
        columns["session"],
        columns["created"],
        columns["successor"],
    )
    plan = merged(
        pairs,
        columns["created"],
        columns["access_count"],
        columns["last_access"],
        columns["relevance"],
        ledger.pinned[:size],
    )
    ring.access_count[:size] = plan.access_count.to(ring.device)
    ring.last_access[:size] = plan.last_access.to(ring.device)
    ring.relevance[:size] = plan.relevance.to(ring.device)
    ring.empty(plan.goes)
    return len(plan.goes)


def _rise(core: Core, tier: int) -> int:
    """Blocks of a tier that were recalled since the last time go up one, for others to sink."""
    ring, ledger = core.ring, core.ring.ledger
    at = ledger.tiers[tier]
    used = ring.last_access[at.first : at.end].cpu() >= max(1, core.consolidated)
    slots = at.first + (used & (ledger.owner[at.first : at.end] != NO_SESSION)).nonzero()[:, 0]
    return _up(core, tier, slots, lambda slot, other: _older(core, other, slot))


def lift(core: Core, session: int) -> int:
    """Bring a session's blocks up; see `Memory.lift`. The decoder's hooks must rest meanwhile."""
    ledger = core.ring.ledger
    risen = 0
    for tier in reversed(range(1, len(ledger.tiers))):
        at = ledger.tiers[tier]
        slots = at.first + (ledger.owner[at.first : at.end] == session).nonzero()[:, 0]
        risen += _up(core, tier, slots, lambda _, other: int(ledger.owner[other]) != session)
    return risen


def _older(core: Core, other: int, slot: int) -> bool:
    """Whether the block of one slot was used longer ago than that of another."""
    used = core.ring.last_access
    return bool(used[other] < used[slot])


def _up(core: Core, tier: int, slots: torch.Tensor, yields: Callable[[int, int], bool]) -> int:
    """Blocks go up one tier, those used last before others, until half a tier has come.

    Blocks that keep no states are run through the model again; where hidden states are stored,
    that does not give them, and such blocks stay where they are.

    Args:
        core: the memory's store.
        tier: from which they come.
        slots: `[n]` int64 theirs, on the CPU.
        yields: whether the block in its second slot may sink for the one in the first.
    """
    ring, ledger = core.ring, core.ring.ledger
    bare = ~ring.keeps_states(slots)
    above = ring.parts(tier - 1)
    wanted = [name for name in above if name.startswith(("keys.", "values."))]
    if core.store == "states":
        slots = slots[~bare]
    most = max(1, ledger.tiers[tier - 1].slots // 2)
    order = ring.last_access[slots.to(ring.device)].cpu().argsort(descending=True, stable=True)
    risen = 0
    for slot in slots[order[:most]].tolist():
        other = -1
        if not ledger.free(tier - 1):
            other = ring.keeper.least_used(tier - 1, int(ledger.owner[slot]))
            if other < 0 or not yields(slot, other):
                continue
        one = torch.tensor([slot])
        states = {}
        if wanted and not bool(ring.keeps_states(one)):
            layers = core.recomputed.get(one[:, None])[0]
            for name in wanted:
                part, number = name.split(".")
                states[name] = layers[int(number)][part == "values"]
        if other < 0:
            ring.move(one, ledger.take(tier - 1, 1), states)
        else:
            ring.swap(slot, other, states)
        risen += 1
    return risen
