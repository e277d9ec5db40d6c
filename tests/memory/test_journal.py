"""What a change touches comes back where the change is left by an exception, whatever that is."""

from __future__ import annotations

import contextlib
import itertools
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cmr.memory.block_store import BlockStore
from cmr.memory.copies import fork, merge
from cmr.memory.journal import Journal
from cmr.memory.sessions import SessionTable
from tests.memory.test_block_store import batch, ring

ERRORS = (KeyboardInterrupt, MemoryError, OSError)


def test_an_inner_change_is_taken_back_alone() -> None:
    journal, table = Journal(), {"a": 1}
    with journal.change():
        journal.item(table, "a")
        table["a"] = 2
        with pytest.raises(ValueError), journal.change():
            journal.item(table, "a", "b")
            table["a"], table["b"] = 3, 3
            raise ValueError
        assert table == {"a": 2}
    assert table == {"a": 2} and not journal.open


def test_notes_are_taken_back_in_reverse_order_and_once_more_where_that_was_interrupted() -> None:
    journal, done, fail = Journal(), [], [True]

    def undo(name: str) -> Callable[[], None]:
        def run() -> None:
            if name == "b" and fail.pop() if fail else False:
                raise KeyboardInterrupt
            done.append(name)

        return run

    with pytest.raises(KeyboardInterrupt), journal.change():
        for name in "abc":
            journal.note(undo(name))
        raise OSError
    assert journal.open and done == ["c"]
    journal.recover()
    assert not journal.open and done == ["c", "b", "a"]


def test_what_is_settled_is_settled_behind_the_outer_change_only() -> None:
    journal, settled = Journal(), []
    journal.settle.append(lambda: settled.append(journal.open))
    with journal.change():
        with journal.change():
            pass
        assert settled == []
    assert settled == [False]


def state_of(store: BlockStore, table: SessionTable) -> list[Any]:
    """All that is stored and known, as values that can be compared."""
    ledger = store.ledger
    held = [tuple(ledger.held(n).tolist()) for n in range(len(ledger.tiers))]
    parts = [part.clone() for tier in store.parts for part in tier.values()]
    columns = [column.clone() for column in store.columns]
    own = [ledger.owner, ledger.number, ledger.born, ledger.deadline, ledger.pinned]
    return [
        held,
        [sorted(free) for free in ledger._free],
        dict(ledger._held),
        dict(ledger._newest),
        (store.clock, ledger.limit),
        table.infos(),
        *parts,
        *columns,
        *(column.clone() for column in own),
    ]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def check(store: BlockStore) -> None:
    """Slots add up, and one that is not held holds nothing."""
    ledger = store.ledger
    for number, tier in enumerate(ledger.tiers):
        held = set(ledger.held(number).tolist())
        free = ledger._free[number]
        assert len(free) == len(set(free)) and held.isdisjoint(free)
        assert held | set(free) == set(range(tier.first, tier.end))
        for part in store.parts[number].values():
            for slot in free:
                assert not part[slot - tier.first].view(torch.uint8).any()
    assert torch.equal(store.session.cpu(), ledger.owner)
    assert torch.equal(store.created.cpu(), ledger.number)
    assert int(store.cursor) == store.clock


def swap(store: BlockStore) -> None:
    store.swap(int(store.ledger.held(0)[0]), int(store.ledger.held(1)[0]))


ROOM = {"write into room": 16}
"""Slots of the first tier, where it is not full."""
OPERATIONS: dict[str, Callable[[Any, SessionTable], Any]] = {
    "write": lambda store, table: store.write(batch([1, 0, 1], first=7)),
    "write into room": lambda store, table: store.write(batch([1, 0, 1], first=7)),
    "empty": lambda store, table: store.empty(store.ledger.slots_of(0)),
    "clear": lambda store, table: store.clear(),
    "fork": lambda store, table: fork(store.keeper, table, "a", "copy"),
    "merge": lambda store, table: merge(store, table, "a", "b"),
    "swap": lambda store, table: swap(store),
}


class Failing(TorchDispatchMode):
    """Raises at the n-th operation of PyTorch, and notes whether that is behind the change."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left, self.error, self.settling = at, error, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if not self.left:
            names = {frame.name for frame in traceback.extract_stack()}
            self.settling = BlockStore.settle.__name__ in names
            raise self.error
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failed_operation_leaves_everything_as_it_was(name: str) -> None:
    """The n-th operation of PyTorch fails, for every third n."""
    for at in itertools.count(1, 3):
        store, table = ring(ROOM.get(name, 4), working=4, long_term=4), SessionTable()
        table.journal = store.journal
        for session in ("a", "b"):
            table.create(session)
        store.write(batch([0, 1, 0, 1, 1, 0]))
        before, error = state_of(store, table), ERRORS[at // 3 % len(ERRORS)]
        failing = Failing(at, error)
        with contextlib.suppress(error), failing:
            OPERATIONS[name](store, table)
        if failing.left > 0:
            break
        store.journal.recover()
        check(store)
        # An error behind the point at which it counts leaves it done.
        if same(state_of(store, table), before):
            OPERATIONS[name](store, table)
            check(store)
        else:
            assert failing.settling
    assert at > 20, "the operations were not seen"
