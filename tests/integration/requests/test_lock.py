"""The lock is handed on in the order in which it was asked for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from cmr.integration.requests import lock as lock_module
from cmr.integration.requests.lock import FairLock


def until(condition: object, seconds: float = 10.0) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def test_it_goes_to_whoever_waited_longest() -> None:
    lock, order = FairLock(), []

    def work(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: lock.waiting == number + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(6))


def test_who_asks_again_at_once_waits_for_its_turn() -> None:
    lock, order = FairLock(), []

    def greedy() -> None:
        for _ in range(3):
            with lock:
                order.append("greedy")
                until(lambda: lock.waiting or order.count("modest") == 3)

    def modest() -> None:
        for _ in range(3):
            with lock:
                order.append("modest")

    threads = [threading.Thread(target=greedy), threading.Thread(target=modest)]
    threads[0].start()
    until(lambda: order)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert order == ["greedy", "modest"] * 3


def test_it_is_reentrant_and_knows_its_owner() -> None:
    lock = FairLock()
    with lock, lock:
        assert lock.mine
        found: list[bool] = []
        other = threading.Thread(target=lambda: found.append(lock.acquire(timeout=0.01)))
        other.start()
        other.join()
        assert found == [False] and lock.waiting == 0
    assert not lock.mine
    with pytest.raises(RuntimeError, match="does not hold"):
        lock.release()


def test_an_interrupt_while_waiting_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FairLock()
    raised: list[BaseException] = []

    class Gate:
        """A lock that is interrupted by whoever waits for it."""

        taken = False

        def acquire(self, timeout: float = -1) -> bool:
            if self.taken:
                raise KeyboardInterrupt
            self.taken = True
            return True

    def wait() -> None:
        try:
            lock.acquire()
        except KeyboardInterrupt as error:
            raised.append(error)

    with lock:
        replaced = SimpleNamespace(Lock=Gate, get_ident=threading.get_ident)
        monkeypatch.setattr(lock_module, "threading", replaced)
        other = threading.Thread(target=wait)
        other.start()
        other.join()
        assert raised and lock.waiting == 0
    assert lock.acquire(timeout=0.0)
    lock.release()


def leaves_it(lock: FairLock, ended: list[str]) -> None:
    """Takes a lock and never lets go, as where an interrupt comes in front of every `finally`."""
    hold = lock.__enter__()
    hold.after = lambda: ended.append("ended")


def test_a_hold_whose_function_is_over_is_lost() -> None:
    taken: list[str] = []
    lock, ended = FairLock(lambda: taken.append("taken")), []
    leaves_it(lock, ended)
    assert lock.mine and ended == []
    with lock:
        assert ended == ["ended"] and taken == ["taken", "taken"]
    assert not lock.mine


def test_an_inner_hold_that_is_lost_leaves_the_outer_one() -> None:
    lock, ended = FairLock(), []
    with lock:
        leaves_it(lock, ended)
        with lock:
            assert ended == ["ended"]
        assert lock.mine
    assert not lock.mine


def test_letting_go_ends_what_was_lost_inside() -> None:
    lock, ended = FairLock(), []
    with lock:
        leaves_it(lock, ended)
    assert ended == ["ended"] and not lock.mine


@pytest.mark.parametrize("lives", [True, False], ids=["its thread lives", "its thread is gone"])
def test_who_waits_gets_a_lock_that_was_lost(lives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "LOST", 0.05)
    lock, ended, over, left = FairLock(), [], threading.Event(), threading.Event()

    def lose() -> None:
        leaves_it(lock, ended)
        left.set()
        if lives:
            over.wait(10)

    other = threading.Thread(target=lose)
    other.start()
    left.wait(10)
    if not lives:
        other.join()
    assert lock.acquire(timeout=5.0) and ended == ["ended"]
    lock.release()
    over.set()
    other.join()


def test_a_lock_that_is_held_for_long_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "LOST", 0.01)
    lock, found = FairLock(), []
    with lock:
        other = threading.Thread(target=lambda: found.append(lock.acquire(timeout=0.2)))
        other.start()
        other.join()
    assert found == [False]


def test_a_context_that_is_a_generator_holds_for_whoever_entered_it() -> None:
    lock = FairLock()

    @contextlib.contextmanager
    def inside() -> Iterator[None]:
        with lock:
            yield

    with inside():
        with lock:
            assert lock.mine
        assert lock.mine
    assert not lock.mine
