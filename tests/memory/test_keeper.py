"""Room in a ring buffer: limits, fair shares, pins, and many sessions."""

from __future__ import annotations

import time

import pytest
import torch

from cmr.memory import Policy, SessionTable
from cmr.memory.copies import fork, merge
from tests.memory.test_block_store import batch, ring


def marks(store, session: int | None = None) -> list[int]:
    return [int(store.token_ids[slot, 0]) // 10 for slot in store.ledger.slots_of(session)]


def test_a_session_holds_no_more_than_its_limit() -> None:
    store = ring(6, Policy(session_blocks=3), working=4)
    store.write(batch([0] * 5))
    assert marks(store) == [3, 4, 5]
    store.write(batch([1, 0, 1, 1, 1], first=6))
    assert (marks(store, 0), marks(store, 1)) == ([4, 5, 7], [8, 9, 10])


def test_nobody_is_pushed_below_the_share() -> None:
    store = ring(8)
    store.write(batch([0] * 2))
    store.write(batch([1] * 2, first=3))
    for first in range(10, 60, 8):
        store.write(batch([2] * 8, first=first))
    assert (marks(store, 0), marks(store, 1)) == ([1, 2], [3, 4])
    assert marks(store, 2) == [62, 63, 64, 65]
    store.write(batch([3] * 4, first=70))
    assert [store.blocks_of(s) for s in range(4)] == [2, 2, 2, 2]


def test_room_is_made_ahead() -> None:
    store = ring(10, Policy(keep_share=0.5))
    store.write(batch([0] * 10))
    store.write(batch([0], first=11))
    assert marks(store) == [7, 8, 9, 10, 11]
    store.write(batch([0] * 5, first=12))
    assert len(marks(store)) == 10 and store.keeper.evicted == 6


def test_what_is_pinned_stays_and_a_full_store_of_it_says_so() -> None:
    store = ring(4, working=2)
    store.write(batch([0] * 4))
    store.ledger.pinned[:] = True
    with pytest.raises(ValueError, match=r"no room for new blocks in the tier 'recent'.*pinned"):
        store.write(batch([0], first=5))
    assert marks(store) == [1, 2, 3, 4]
    store.ledger.pinned[2:] = False
    store.write(batch([0] * 3, first=5))
    assert {1, 2} <= set(marks(store)) and len(marks(store)) == 6


def test_what_finds_no_room_below_leaves() -> None:
    """Rather than that new text cannot be stored."""
    store = ring(2, working=1)
    store.write(batch([0] * 3))
    store.ledger.pinned[store.ledger.held(1)] = True
    store.write(batch([0], first=4))
    assert marks(store) == [1, 3, 4]


def test_a_session_more_than_the_limit_is_refused() -> None:
    table = SessionTable(limit=2)
    assert [table.create(name) for name in ("anna", "ben", "anna")] == [0, 1, 0]
    with pytest.raises(ValueError, match="at most 2 sessions at once, there are 2 and 1 more"):
        table.create("carl")
    table.remove("anna")
    assert table.create("carl") == 2 and table.names() == ["ben", "carl"]


def test_thousands_of_sessions_share_a_store() -> None:
    """And what one write costs does not grow with them out of hand."""
    store, count = ring(4096), 4000
    for first in range(0, count, 500):
        store.write(batch(list(range(first, first + 500)), first=first + 1))
    began = time.process_time()
    for i in range(20):
        store.write(batch([i], first=9000 + i))
    assert (time.process_time() - began) / 20 < 0.05
    assert all(store.blocks_of(s) >= 1 for s in range(0, count, 97))
    assert store.blocks_of(3) == 2
    store.write(batch([7] * 200, first=20_000))
    assert all(store.blocks_of(s) >= 1 for s in range(0, count, 97))
    assert store.clear(7) == store.slots - count + 1


def test_a_fork_is_chained_as_its_original_across_tiers() -> None:
    store, table = ring(4, working=4, long_term=8), SessionTable()
    number = table.create("anna")
    store.write(batch([number] * 6))
    assert fork(store.keeper, table, "anna", "copy") == 6
    copy = store.ledger.slots_of(table.require("copy"))
    assert marks(store, table.require("copy")) == marks(store, number) == [1, 2, 3, 4, 5, 6]
    at = int(copy[store.positions[copy].amax(1).argmin()])
    walked = [at]
    while store.successor[walked[-1]] >= 0:
        walked.append(int(store.successor[walked[-1]]))
    assert sorted(walked) == sorted(copy.tolist())
    assert not set(store.created[copy].tolist()) & set(range(1, 7))
    store.write(batch([table.require("copy")], first=7))
    newest = store.ledger.newest(table.require("copy"))
    assert int(store.predecessor[newest]) in copy.tolist()
    with pytest.raises(ValueError, match="session named 'copy' already"):
        fork(store.keeper, table, "anna", "copy")
    with pytest.raises(ValueError, match="two sessions expected, got 'copy' twice"):
        merge(store, table, "copy", "copy")


def test_changing_places_keeps_what_blocks_are() -> None:
    store = ring(2, working=2)
    store.write(batch([0] * 4))
    low, high = int(store.ledger.held(1)[0]), int(store.ledger.held(0)[0])
    before = {slot: store.token_ids[slot].clone() for slot in (low, high)}
    keys = {int(store.created[s]): store.gather_anywhere(2, torch.tensor([[s]])) for s in range(4)}
    store.swap(low, high)
    assert torch.equal(store.token_ids[high], before[low])
    assert torch.equal(store.token_ids[low], before[high])
    for slot in range(4):
        have = store.gather_anywhere(2, torch.tensor([[slot]]))
        assert all(map(torch.equal, have, keys[int(store.created[slot])]))
    at = int((store.created == 1).nonzero())
    order = [at]
    while store.successor[order[-1]] >= 0:
        order.append(int(store.successor[order[-1]]))
    assert store.created[order].tolist() == [1, 2, 3, 4]
    assert torch.equal(store.ledger.number, store.created)
