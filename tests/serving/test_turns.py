"""The queue: bounded, a session's turns in order, others not held up by it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cmr.serving.engines.job import Job
from cmr.serving.engines.ticket import Ticket
from cmr.serving.engines.turns import Turns
from cmr.serving.refusals import Refusal


def ticket(turns: Turns, session: str | None, **fields: Any) -> Ticket:
    found = Ticket(Job((1,), session, **fields), lambda _: None, turns.drop)
    turns.put(found)
    return found


def together(batch: list[Ticket], one: Ticket) -> bool:
    return batch[0].job.mode == one.job.mode


def test_a_session_has_one_turn_at_a_time_in_order() -> None:
    turns = Turns(8)
    first, second = ticket(turns, "a"), ticket(turns, "a")
    other, nobody = ticket(turns, "b"), ticket(turns, None)
    batch = turns.take(together, 8, 0.0)
    assert batch == [first, other, nobody]
    third = ticket(turns, "a")
    turns.done(batch, 1.0)
    assert turns.take(together, 8, 0.0) == [second]
    turns.done([second])
    assert turns.take(together, 8, 0.0) == [third]


def test_who_has_been_answered_lets_the_next_in_and_nobody_alone() -> None:
    turns, inside = Turns(8), threading.Event()
    first, other = ticket(turns, "a"), ticket(turns, "b")
    assert turns.take(together, 8, 0.0) == [first, other]
    second = ticket(turns, "a")
    turns.answered(first)
    assert turns.take(together, 8, 0.0) == [second]
    turns.answered(second)

    def alone() -> None:
        with turns.alone("a", seconds=5):
            inside.set()

    thread = threading.Thread(target=alone)
    thread.start()
    while not turns._waiting:
        time.sleep(0.001)
    third = ticket(turns, "a")
    turns.done([second])
    assert not inside.wait(0.1) and third in turns._waiting
    turns.done([first, other])
    assert inside.wait(5)
    thread.join()
    assert turns.take(together, 8, 0.0) == [third]


@pytest.mark.parametrize(("pause", "wanted"), [(0.6, 9), (1.1, 1), (0.0, 16)])
def test_a_batch_waits_while_others_come(
    monkeypatch: pytest.MonkeyPatch, pause: float, wanted: int
) -> None:
    """They come `pause` times as far apart as one is waited for."""
    turns, now, gather = Turns(64), 0.0, 0.01

    def wait(seconds: float | None = None) -> bool:
        nonlocal now
        if seconds is not None and seconds < pause * gather:
            now += seconds
            return False
        now += pause * gather
        ticket(turns, None)
        return True

    monkeypatch.setattr("cmr.serving.engines.turns.time", SimpleNamespace(monotonic=lambda: now))
    ticket(turns, None)
    monkeypatch.setattr(turns._changed, "wait", wait)
    assert len(turns.take(together, 16, gather)) == wanted


def test_what_does_not_fit_waits_and_keeps_its_place() -> None:
    turns = Turns(8)
    first, reads = ticket(turns, "a"), ticket(turns, "b", mode="read")
    behind, last = ticket(turns, "b"), ticket(turns, "c")
    # 'behind' is of a session that somebody in front of it waits for.
    assert turns.take(together, 8, 0.0) == [first, last]
    assert turns.take(together, 8, 0.0) == [reads]
    turns.done([reads])
    assert turns.take(together, 1, 0.0) == [behind]


def test_a_full_queue_says_when_to_come_again_and_what_leaves_makes_room() -> None:
    turns = Turns(2)
    first = ticket(turns, "a")
    ticket(turns, "b")
    with pytest.raises(Refusal) as refused:
        ticket(turns, "c")
    assert refused.value.status == 429 and refused.value.retry_after
    first.cancel()
    assert ticket(turns, "c") and turns.load == (2, 0)


def test_who_wants_a_session_alone_waits_for_its_turn() -> None:
    turns, log = Turns(8), []
    first = ticket(turns, "a")
    assert turns.take(together, 8, 0.0) == [first]
    inside, leave = threading.Event(), threading.Event()

    def alone() -> None:
        with turns.alone("a", "b", seconds=5):
            log.append("alone")
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=alone)
    thread.start()
    while turns.load == (0, 1) and not turns._waiting:
        time.sleep(0.001)
    after, free = ticket(turns, "b"), ticket(turns, "c")
    # Nobody overtakes: 'b' came later than who wants it alone.
    assert turns.take(together, 8, 0.0) == [free] and not inside.is_set()
    turns.done([first])
    assert inside.wait(5)
    with pytest.raises(Refusal), turns.alone("a", seconds=0.01):
        pytest.fail("had by two at once")
    leave.set()
    thread.join()
    assert turns.take(together, 8, 0.0) == [after] and log == ["alone"]


def test_a_closed_queue_is_worked_off() -> None:
    turns = Turns(8)
    waiting = ticket(turns, "a")
    assert turns.close(0.0) == [waiting]
    with pytest.raises(Refusal) as refused:
        ticket(turns, "b")
    assert refused.value.status == 503
    turns.done(turns.take(together, 8, 0.0))
    assert turns.take(together, 8, 0.0) == []
