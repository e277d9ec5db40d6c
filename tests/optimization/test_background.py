"""Upkeep in a thread: beside nothing else, ended cleanly."""

from __future__ import annotations

import threading
import time

import pytest

import cmr
from cmr import BackgroundOptimizer, ConfigError
from tests.integration.tiny import text


def until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.002)


def test_it_tidies_a_memory_up(llama) -> None:
    with cmr.attach(llama, window=64, budget=2048) as memory:
        ids = text(1, 64)
        memory.read(ids)
        memory.read(ids)  # word for word the same again
        before = memory.tokens
        with BackgroundOptimizer(memory.consolidate, 0.005) as background:
            until(lambda: background.runs)
        assert memory.tokens < before and background.error is None
        assert not background.running


def test_upkeep_takes_turns_with_who_uses_the_memory(llama) -> None:
    with cmr.attach(llama, window=64, budget=2048) as memory:
        with memory._core.lock:
            background = BackgroundOptimizer(memory.consolidate, 0.001).start()
            until(lambda: memory._core.lock.waiting)
            time.sleep(0.02)
            assert background.runs == 0
        until(lambda: background.runs)
        background.close()


def test_ending_waits_for_upkeep() -> None:
    inside, go = threading.Event(), threading.Event()

    def upkeep() -> None:
        inside.set()
        go.wait(10)

    background = BackgroundOptimizer(upkeep, 0.001).start()
    until(inside.is_set)
    ending = threading.Thread(target=background.close)
    ending.start()
    time.sleep(0.02)
    assert ending.is_alive()
    go.set()
    ending.join(10)
    assert not ending.is_alive() and background.runs == 1


def test_it_begins_again_after_its_end() -> None:
    background = BackgroundOptimizer(lambda: None, 0.001)
    for _ in range(2):
        before = background.runs
        with background:
            until(lambda before=before: background.runs > before)


def test_a_failure_ends_it_and_its_words_are_not_logged(caplog) -> None:
    def upkeep() -> None:
        raise ValueError("the customer's address")

    with BackgroundOptimizer(upkeep, 0.001) as background:
        until(lambda: background.error is not None)
        until(lambda: not background.running)
    assert background.stats() == {"runs": 0, "running": False, "error": "ValueError"}
    assert "ValueError" in caplog.text and "address" not in caplog.text


def test_a_bad_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="seconds"):
        BackgroundOptimizer(print, 0)
