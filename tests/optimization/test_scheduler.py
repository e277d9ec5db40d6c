"""Deferred work: what runs first, how much of it, and what failing does."""

from __future__ import annotations

import pytest

from cmr import ComputationScheduler, ConfigError


def test_urgent_tasks_run_first_and_equal_ones_in_their_order() -> None:
    scheduler, ran = ComputationScheduler(budget=60), []
    for name, priority in (("a", 0), ("b", 2), ("c", 0), ("d", 1)):
        scheduler.submit(name, lambda name=name: ran.append(name), priority)
    assert scheduler.waiting == ["b", "d", "a", "c"]
    scheduler.run()
    assert ran == ["b", "d", "a", "c"] and scheduler.waiting == []


def test_a_spent_budget_leaves_the_rest_waiting() -> None:
    scheduler = ComputationScheduler(budget=0)
    for name in "abc":
        scheduler.submit(name, lambda name=name: name * 2)
    assert scheduler.run() == {"a": "aa"}
    assert scheduler.waiting == ["b", "c"] and scheduler.stats() == {"done": 1, "waiting": 2}
    assert scheduler.run(budget=60) == {"b": "bb", "c": "cc"}


def test_a_task_takes_the_place_of_one_of_its_name() -> None:
    scheduler = ComputationScheduler(budget=60)
    scheduler.submit("tidy", lambda: "old", priority=5)
    scheduler.submit("tidy", lambda: "new")
    assert scheduler.run() == {"tidy": "new"}


def test_what_a_task_raises_is_raised_and_the_others_wait() -> None:
    scheduler = ComputationScheduler(budget=60)
    scheduler.submit("bad", lambda: 1 / 0, priority=1)
    scheduler.submit("good", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        scheduler.run()
    assert scheduler.run() == {"good": 1}


def test_bad_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="budget"):
        ComputationScheduler(-1)
    scheduler = ComputationScheduler()
    with pytest.raises(TypeError, match="something to call"):
        scheduler.submit("a", 3)
    with pytest.raises(ConfigError, match="priority"):
        scheduler.submit("a", print, "high")
    assert scheduler.waiting == []
