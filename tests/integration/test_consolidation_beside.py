"""Upkeep while others use the memory: short pieces, each looking at what is there by then."""

from __future__ import annotations

import threading
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.integration import consolidation as upkeep
from cmr.integration.requests.lock import FairLock
from tests.integration.tiny import text

SETTINGS: dict[str, Any] = {"window": 64, "threshold": 0.0, "block_size": 32}
TIERS: dict[str, Any] = {"budget": 32 * 4, "working_budget": 32 * 6, "long_term_budget": 32 * 64}


def filled(model: nn.Module, room: bool) -> cmr.Memory:
    """A session in three tiers, recalled from the lower ones; with room above or not."""
    memory = cmr.attach(model, **SETTINGS, **TIERS, eviction_strategy="lru")
    memory.read(text(32 * 20))
    if room:
        memory.read(text(32 * 10, seed=1), sessions=["other"])
        memory.clear("other")
    for start in (40, 140, 240):
        model(text(32 * 20)[None, start : start + 30])
    return memory


def elsewhere(target: Any) -> None:
    """Run something in another thread: it waits for ever where the lock is held here."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the lock is held between two pieces"


class Holds(FairLock):
    """Notes what happens in each hold."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[list[Any]] = []

    def acquire(self, timeout: float | None = None, frame: FrameType | None = None) -> bool:
        if not self.mine:
            self.done.append([])
        return super().acquire(timeout, frame)


@pytest.mark.parametrize("how", ["consolidate", "lift"])
def test_a_block_at_a_time_rises_and_the_hooks_rest_under_the_lock_only(
    how: str, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(llama, room=how == "lift") as memory:
        core, stepper = memory._core, memory._stepper
        core.lock = lock = Holds()
        run, ring = core.recomputed.get, core.ring
        move, swap, one_up = ring.move, ring.swap, upkeep._one_up

        def recompute(passages: torch.Tensor) -> Any:
            assert lock.mine and stepper.busy
            lock.done[-1].append("run")
            return run(passages)

        def next_one(*given: Any) -> bool:
            elsewhere(lambda: None if stepper.busy else found.append(True))
            return one_up(*given)

        found: list[bool] = []
        monkeypatch.setattr(core.recomputed, "get", recompute)
        monkeypatch.setattr(upkeep, "_one_up", next_one)
        for name, real in (("move", move), ("swap", swap)):
            monkeypatch.setattr(
                ring, name, lambda *given, real=real: (lock.done[-1].append("up"), real(*given))
            )
        risen = memory.consolidate().risen if how == "consolidate" else memory.lift("0")
        assert risen > 3 and found and all(found), "nobody else's forward is taken for our own"
        assert max(hold.count("up") for hold in lock.done) == 1
        assert max(hold.count("run") for hold in lock.done) == 1
        assert sum(hold.count("up") for hold in lock.done) == risen
        assert not lock.mine


def test_what_came_into_a_slot_meanwhile_is_not_merged(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding and emptying, everything that was found is forgotten and others come in."""
    ids, find = text(128), upkeep.near_duplicates
    with cmr.attach(llama, **SETTINGS, budget=32 * 8) as memory:

        def found(*given: Any) -> Any:
            pairs = find(*given)
            assert len(pairs.earlier)
            elsewhere(lambda: memory.forget("0"))
            elsewhere(lambda: memory.read(text(256, seed=9), sessions=["carl"]))
            return pairs

        memory.read(torch.cat([ids, ids]))
        with monkeypatch.context() as patch:
            patch.setattr(upkeep, "near_duplicates", found)
            assert memory.consolidate().merged == 0
        blocks = memory.inspect("carl")
        assert [token for block in blocks for token in block.token_ids] == text(
            256, seed=9
        ).tolist()
        memory.forget("carl")
        memory.read(torch.cat([ids, ids]))
        assert memory.consolidate().merged > 0


def test_what_is_recalled_between_finding_and_merging_counts(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, find = text(128), upkeep.near_duplicates
    with cmr.attach(llama, **SETTINGS, budget=32 * 16) as memory:
        memory.read(torch.cat([ids, text(64, seed=4), ids]))
        ring = memory._core.ring

        def found(*given: Any) -> Any:
            pairs = find(*given)
            slots = ring.ledger.slots_of(None)
            elsewhere(lambda: ring.access_count.index_add_(0, slots, torch.ones_like(slots)))
            return pairs

        before = int(ring.access_count.sum())
        with monkeypatch.context() as patch:
            patch.setattr(upkeep, "near_duplicates", found)
            report = memory.consolidate()
        assert report.merged > 0
        # A block that goes gives its count to all that stay for it, so there may be more.
        assert int(ring.access_count.sum()) >= before + 10


def test_emptying_goes_in_parts(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "EMPTIED", 2)
    ids = text(32 * 9)
    with cmr.attach(llama, **SETTINGS, budget=32 * 32) as memory:
        memory.read(torch.cat([ids, ids]))
        memory._core.lock = lock = Holds()
        ring, empty = memory._core.ring, memory._core.ring.empty
        monkeypatch.setattr(
            ring, "empty", lambda slots: (lock.done[-1].append(len(slots)), empty(slots))
        )
        merged = memory.consolidate().merged
        emptied = [sum(hold) for hold in lock.done if hold]
        assert sum(emptied) == merged > 4 and max(emptied) == 2


def test_what_is_gone_does_not_rise(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first block everything is forgotten, and others come into the slots."""
    with filled(llama, room=True) as memory:
        one_up, seen = upkeep._one_up, []

        def next_one(core: Any, alone: Any, tier: int, slot: int, yields: Any) -> bool:
            seen.append(int(core.ring.ledger.owner[slot]))
            risen = one_up(core, alone, tier, slot, yields)
            if len(seen) == 1:
                memory.forget("0")
                memory.read(text(32 * 20, seed=5), sessions=["carl"])
            return risen

        monkeypatch.setattr(upkeep, "_one_up", next_one)
        assert memory.lift("0") == 1
        assert seen == [0], "none of carl's blocks is taken for one of the forgotten session's"
        assert len(memory.inspect("carl")) == 20
