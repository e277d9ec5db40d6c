"""A threshold that follows how often memory is to be read."""

from __future__ import annotations

import random
import threading
import time
from types import SimpleNamespace

import pytest

import cmr
from cmr import AdaptiveThresholdManager, ConfigError
from tests.integration.tiny import text


@pytest.fixture
def memory(llama):
    with cmr.attach(llama, window=64, budget=2048, threshold=0.8) as memory:
        yield memory


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_the_share_that_recalls_comes_to_the_wanted_one(memory, rate: float) -> None:
    manager = AdaptiveThresholdManager(memory, rate, step=0.05)
    certainties = random.Random(1)
    for _ in range(1000):
        # What a search would find: certain of it to a degree that the manager knows nothing of.
        manager.update([certainties.gauss(1.2, 0.25) >= manager.threshold])
    assert abs(manager.recalled / manager.seen - rate) <= 2.0 / (0.05 * 1000)
    assert memory.config.retrieval.threshold == manager.threshold


def test_searches_follow_the_threshold(memory, llama) -> None:
    memory.read(text(1, 256))
    manager = AdaptiveThresholdManager(memory, 0.5, step=1.0, high=50.0)
    question = text(1, 8, seed=3)
    for _ in range(80):
        manager.update([True])  # as if everything recalled
    assert manager.threshold > 30
    llama(question)
    assert memory.recalled == [[]]
    for _ in range(120):
        manager.update([False])
    assert manager.threshold == 0.0
    llama(question)
    assert memory.recalled[0]


def test_bounds_hold(memory) -> None:
    manager = AdaptiveThresholdManager(memory, 0.5, step=0.4, low=0.5, high=1.0)
    assert manager.update([True, True, True]) == 1.0
    assert manager.update([False] * 9) == 0.5


@pytest.mark.parametrize(
    "bad", [{"rate": 0.0}, {"rate": 1.0}, {"step": 0}, {"low": 2.0, "high": 1.0}, {"low": -1}]
)
def test_bad_values_are_refused_and_change_nothing(memory, bad) -> None:
    with pytest.raises(ConfigError, match=next(reversed(bad))):
        AdaptiveThresholdManager(memory, **bad)
    assert memory.config.retrieval.threshold == 0.8


def test_threads_do_not_undo_each_other() -> None:
    retrieval = SimpleNamespace(threshold=1.0)

    def change(threshold: float) -> None:
        time.sleep(0.001)
        retrieval.threshold = threshold

    memory = SimpleNamespace(config=SimpleNamespace(retrieval=retrieval), change=change)
    manager = AdaptiveThresholdManager(memory, 0.5, step=0.02, high=9.0)
    threads = [
        threading.Thread(target=lambda: [manager.update([True]) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert retrieval.threshold == pytest.approx(1.0 + 40 * 0.01)
    assert manager.stats()["requests"] == 40
