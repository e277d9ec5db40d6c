"""A setting that follows a target, as requests come: how close, how soon, and what it says."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import cmr
from cmr import AdaptiveThresholdManager, ConfigError
from cmr.integration.requests.answers import Answer
from cmr.optimization.quantiles import TrailingQuantile
from tests.integration.tiny import text

Scores = Callable[[random.Random], float]


def memory_like(threshold: float = 0.8) -> SimpleNamespace:
    """Settings that can be changed, and nothing else of a memory."""
    retrieval = SimpleNamespace(threshold=threshold)
    stored = SimpleNamespace(relevance_threshold=None, scoring="surprise")

    def change(**settings: float) -> None:
        for name, value in settings.items():
            setattr(retrieval if name == "threshold" else stored, name, value)

    return SimpleNamespace(
        config=SimpleNamespace(retrieval=retrieval, memory=stored), change=change
    )


def asked(manager: AdaptiveThresholdManager, scores: Scores, count: int, seed: int = 0) -> list:
    """Requests whose search is as certain as `scores` draws: what each of them cost."""
    draw, spent = random.Random(seed), []
    for _ in range(count):
        score = scores(draw)
        steers = manager.setting == "threshold"
        recalled = not steers or score >= (manager.threshold or 0.0)
        seconds = (0.8 if recalled else 0.5) * draw.lognormvariate(0, 0.1)
        nbytes = 100_000 * draw.randint(1, 3) if recalled else 0
        certainty, relevance = (score, 0.5) if steers else (1.2, score)
        answer = Answer("a", seconds, certainty, recalled, relevance, nbytes)
        counts = recalled if steers else score >= (manager.threshold or 0.0)
        costs = {"recall_rate": counts, "latency": seconds, "bytes": nbytes if counts else 0}
        spent.append(float(costs[manager.target]))
        manager.update([answer])
    return spent


def mean(costs: list) -> float:
    return sum(costs) / len(costs)


SURE: Scores = lambda draw: draw.gauss(1.6, 0.3)  # noqa: E731
UNSURE: Scores = lambda draw: draw.gauss(0.9, 0.15)  # noqa: E731
EQUAL: Scores = lambda draw: 1.0 if draw.random() < 0.7 else draw.gauss(1.5, 0.1)  # noqa: E731
TARGETS = [("recall_rate", 0.2), ("recall_rate", 0.8), ("latency", 0.6), ("bytes", 80_000.0)]


@pytest.mark.parametrize(("target", "wanted"), TARGETS)
@pytest.mark.parametrize("scores", [SURE, EQUAL], ids=["spread", "equal"])
def test_a_target_is_held(target: str, wanted: float, scores: Scores) -> None:
    manager = AdaptiveThresholdManager(memory_like(), wanted, target=target)
    asked(manager, scores, 50)
    assert mean(asked(manager, scores, 250, seed=1)) == pytest.approx(wanted, rel=0.05)
    assert manager.held is not False


def test_other_questions_and_another_target_take_fifty_requests() -> None:
    manager = AdaptiveThresholdManager(memory_like(), 0.5)
    asked(manager, SURE, 300)
    asked(manager, UNSURE, 50, seed=1)
    assert mean(asked(manager, UNSURE, 200, seed=2)) == pytest.approx(0.5, rel=0.05)
    manager.aim(0.8)
    asked(manager, UNSURE, 50, seed=3)
    assert mean(asked(manager, UNSURE, 200, seed=4)) == pytest.approx(0.8, rel=0.05)


def test_it_does_not_swing() -> None:
    """The threshold has no period: how it stood some requests ago tells nothing of it."""
    manager = AdaptiveThresholdManager(memory_like(), 0.5)
    asked(manager, SURE, 50)
    draw, values = random.Random(3), []
    for _ in range(300):
        asked(manager, SURE, 1, seed=draw.randrange(10**6))
        values.append(manager.threshold)
    middle = mean(values)
    spread = mean([(value - middle) ** 2 for value in values])
    for lag in range(12, 60):
        pairs = zip(values, values[lag:], strict=False)
        along = mean([(a - middle) * (b - middle) for a, b in pairs])
        assert abs(along) < 0.5 * spread, f"as {lag} requests before"
    assert spread**0.5 < 0.6 * 0.3, "it moves by less than the certainties do"


@pytest.mark.parametrize(
    ("target", "wanted", "ends_at"), [("bytes", 900_000.0, 0.0), ("latency", 0.2, 3.0)]
)
def test_what_cannot_be_held_is_said_once(target: str, wanted: float, ends_at: float) -> None:
    manager = AdaptiveThresholdManager(memory_like(1.6), wanted, target=target)
    with pytest.warns(cmr.CMRWarning, match=f"{target}=.* cannot be held") as told:
        asked(manager, SURE, 300)
    assert len(told) == 1
    stats = manager.stats()
    assert stats["held"] is False and stats["value"] == ends_at
    assert (stats["newest"] < wanted) == (target == "bytes")


def test_bounds_hold_and_a_share_beyond_them_is_said() -> None:
    manager = AdaptiveThresholdManager(memory_like(1.0), 0.9, low=1.5, high=1.7)
    with pytest.warns(cmr.CMRWarning, match=r"recall_rate=0.9 .* in \[1.5, 1.7\]"):
        asked(manager, SURE, 200)
    assert manager.threshold == 1.5
    low, high = manager.stats()["reachable"]
    assert 0.2 < low < 0.5 < high < 0.8


def test_where_recalling_costs_nothing_latency_is_not_steered() -> None:
    manager = AdaptiveThresholdManager(memory_like(), 0.9, target="latency")
    draw = random.Random(0)
    with pytest.warns(cmr.CMRWarning, match="latency=0.9 cannot be held"):
        for _ in range(300):
            certainty = SURE(draw)
            recalled = certainty >= manager.threshold
            manager.update([Answer("a", draw.gauss(0.5, 0.05), certainty, recalled)])


def test_relevance_of_what_is_read_steers_its_threshold() -> None:
    memory = memory_like()
    manager = AdaptiveThresholdManager(memory, 0.7, setting="relevance_threshold")
    draw: Scores = lambda draw: draw.uniform(0.1, 0.9)  # noqa: E731
    asked(manager, draw, 50)
    assert mean(asked(manager, draw, 250, seed=1)) == pytest.approx(0.7, rel=0.05)
    assert memory.config.memory.relevance_threshold == pytest.approx(0.1 + 0.3 * 0.8, abs=0.15)
    assert memory.config.retrieval.threshold == 0.8


def test_requests_with_nothing_to_search_steer_nothing() -> None:
    manager = AdaptiveThresholdManager(memory_like(), 0.5)
    manager.update([Answer("a", 0.1)] * 100)
    assert manager.seen == 0 and manager.threshold == 0.8


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_quantile_lets_the_share_pass(share: float) -> None:
    found = TrailingQuantile(20)
    for score in [9.0] * 30 + [0.1 * n for n in range(20)]:
        found.add(score)
    assert found.share(found.at(share)) == pytest.approx(share)


def test_equal_scores_pass_together_by_the_nearer_edge() -> None:
    found = TrailingQuantile(10)
    for score in [2.0] + [1.0] * 9:
        found.add(score)
    assert found.share(found.at(0.3)) == 0.1
    assert found.share(found.at(0.8)) == 1.0


def test_searches_follow_the_threshold(llama) -> None:
    with cmr.attach(llama, window=64, budget=2048) as memory:
        memory.read(text(1, 1024))
        manager = AdaptiveThresholdManager(memory, 0.3)
        end = memory.watch_requests(manager.update)
        for seed in range(60):
            llama.generate(text(1, 12, seed=seed), max_new_tokens=1)
        end()
        # The same questions again, at a threshold that stays.
        read = 0
        for seed in range(60):
            llama(text(1, 12, seed=seed))
            read += bool(memory.recalled[0])
    assert manager.seen == 60 and 0.2 <= manager.recalled / 60 <= 0.4
    assert 0.1 <= read / 60 <= 0.5 and memory.config.retrieval.threshold == manager.threshold


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"wanted": 0.0}, "wanted"),
        ({"wanted": 1.0}, "wanted"),
        ({"wanted": 0, "target": "bytes"}, "wanted"),
        ({"target": "recalls"}, "recall_rate"),
        ({"setting": "ratio"}, "threshold"),
        ({"low": 2.0, "high": 1.0}, "high"),
        ({"low": -1}, "low"),
        ({"setting": "relevance_threshold"}, "scores relevance"),
        ({"setting": "relevance_threshold", "target": "latency"}, "setting='threshold'"),
        ({"setting": "relevance_threshold", "high": 2.0}, "at most 1"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(llama, bad, words) -> None:
    with cmr.attach(llama, window=64, budget=2048) as memory:
        with pytest.raises(ConfigError, match=words):
            AdaptiveThresholdManager(memory, **bad)
        assert memory.config.retrieval.threshold == 0.8


def test_a_bad_aim_keeps_the_former_one() -> None:
    manager = AdaptiveThresholdManager(memory_like(), 0.5)
    with pytest.raises(ConfigError, match="wanted"):
        manager.aim(1.5)
    assert manager.wanted == 0.5


def test_threads_leave_the_newest_value() -> None:
    memory = memory_like()
    change = memory.change

    def slow(**settings: float) -> None:
        time.sleep(0.001)
        change(**settings)

    memory.change = slow
    manager = AdaptiveThresholdManager(memory, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [
            threading.Thread(target=asked, args=(manager, SURE, 30, seed)) for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert manager.seen == 120 and manager.threshold == manager._value
