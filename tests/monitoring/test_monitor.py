"""`CMRPerformanceMonitor`: what it counts, what it alerts of, and that it changes nothing."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch

import cmr
from cmr import AttachError, CMRPerformanceMonitor, ConfigError, FullCMRModel
from cmr.monitoring.monitor import _percentile
from tests.integration.tiny import text

SETTINGS = {"target_layers": [1, 2, 3], "budget": 1024, "window": 256, "threshold": 0.0}


def test_a_model_class_is_measured(tiny) -> None:
    model = FullCMRModel(tiny("llama"), SETTINGS)
    before = model.performance
    with CMRPerformanceMonitor(model) as monitor:
        model(text(2, 64), torch.ones(2, 64, dtype=torch.int64))
        model(text(2, 16, seed=1))
        model.memory.change(threshold=50.0)
        model(text(2, 8, seed=2))
        found = monitor.metrics()
        assert model(text(1, 8), return_memory_info=True)["performance_stats"]["forwards"] == 4
    assert (found["calls"], found["failures"]) == (3, 0)
    assert found["stored_tokens"] == model.memory.tokens - 8 > 0
    assert found["recall_rate"] == 0.5  # of two searches: where nothing is stored, none is made
    assert 0 < found["p50_seconds"] <= found["p95_seconds"]
    assert found["tokens_per_second"] == pytest.approx(
        176 / sum(seconds for _, seconds in list(monitor._recent)[:3])
    )
    assert model.performance is before
    json.dumps(found)


def test_an_attached_decoder_is_measured_and_left_as_it_was(llama) -> None:
    plain = llama(text(1, 8)).logits
    hooks = len(llama._forward_hooks), len(llama._forward_pre_hooks)
    with cmr.attach(llama, window=64) as memory, CMRPerformanceMonitor(llama) as monitor:
        memory.read(text(1, 128))
        llama(text(1, 8))
        llama.generate(text(1, 8), max_new_tokens=3, do_sample=False)
        with pytest.raises(IndexError):
            llama(torch.full((1, 8), 10**6))
        found = monitor.metrics()
        assert (found["calls"], found["failures"]) == (4, 1)
        assert found["stored_tokens"] == memory.tokens
    assert (len(llama._forward_hooks), len(llama._forward_pre_hooks)) == hooks
    assert torch.equal(llama(text(1, 8)).logits, plain)


def test_a_failing_call_of_a_model_class_counts(tiny) -> None:
    def fail(*_) -> None:
        raise RuntimeError("on purpose")

    model = FullCMRModel(tiny("llama"), SETTINGS)
    failing = model.model.register_forward_pre_hook(fail)
    with CMRPerformanceMonitor(model) as monitor:
        with pytest.raises(RuntimeError, match="on purpose"):
            model(text(1, 8))
        failing.remove()
        assert monitor.metrics()["failures"] == 1 and monitor.metrics()["calls"] == 0


def test_an_alert_is_told_once_until_the_limit_was_kept_again(tiny) -> None:
    model, told = FullCMRModel(tiny("llama"), SETTINGS), []
    limits = {"stored_tokens": 40, "p95_seconds": 1000.0}
    with CMRPerformanceMonitor(model, limits=limits, on_alert=told.append) as monitor:
        assert monitor.health() == {"healthy": True, "alerts": []}
        model(text(1, 64))
        health = monitor.health()
        assert not health["healthy"] and [alert.name for alert in health["alerts"]] == [
            "stored_tokens"
        ]
        monitor.health()
        assert list(map(str, told)) == ["stored_tokens: at most 40 expected, got 64"]
        model.memory.clear()
        assert monitor.health()["healthy"]
        model(text(1, 64))
        monitor.health()
        assert len(told) == 2


def test_least_values_alert_below_them(tiny) -> None:
    model = FullCMRModel(tiny("llama"), SETTINGS)
    with CMRPerformanceMonitor(model, limits={"tokens_per_second": 1e12}) as monitor:
        assert monitor.health()["healthy"]  # nothing happened yet
        model(text(1, 8))
        assert [alert.name for alert in monitor.health()["alerts"]] == ["tokens_per_second"]


def test_only_the_newest_calls_count_for_rates(tiny) -> None:
    model = FullCMRModel(tiny("llama"), SETTINGS)
    with CMRPerformanceMonitor(model, window=2) as monitor:
        for seconds in (9.0, 1.0, 3.0):
            monitor._measured("forward", seconds)
            monitor.note(tokens=8, recalls=0, stored_blocks=0)
        found = monitor.metrics()
    assert (found["p50_seconds"], found["p95_seconds"]) == (1.0, 3.0)
    assert found["tokens_per_second"] == 4.0


@pytest.mark.parametrize(
    ("count", "share", "wanted"), [(1, 0.5, 0), (20, 0.95, 18), (100, 0.95, 94), (3, 0.5, 1)]
)
def test_percentiles(count: int, share: float, wanted: int) -> None:
    assert _percentile([float(i) for i in range(count)], share) == wanted
    assert _percentile([], share) is None


def test_bad_arguments_are_refused(tiny, llama) -> None:
    with pytest.raises(AttachError, match="without one"):
        CMRPerformanceMonitor(llama)
    model = FullCMRModel(llama, SETTINGS)
    before = model.performance
    with pytest.raises(ConfigError, match="did you mean 'failures'"):
        CMRPerformanceMonitor(model, limits={"failure": 1})
    with pytest.raises(ConfigError, match="window"):
        CMRPerformanceMonitor(model, window=0)
    assert model.performance is before


def test_calls_of_two_threads_are_told_apart(llama) -> None:
    """One begins within the other and ends after it."""
    begun, ended = threading.Event(), threading.Event()
    with cmr.attach(llama, window=64), CMRPerformanceMonitor(llama) as monitor:

        def later() -> None:
            monitor._before(llama, (torch.zeros(1, 5),), {})
            begun.set()
            ended.wait(10)
            monitor._after(llama, None, object())

        monitor._before(llama, (torch.zeros(1, 3),), {})
        other = threading.Thread(target=later)
        other.start()
        begun.wait(10)
        monitor._after(llama, None, object())
        assert [tokens for tokens, _ in monitor._recent] == [3]
        ended.set()
        other.join(10)
        assert [tokens for tokens, _ in monitor._recent] == [3, 5]


def test_a_class_notes_the_seconds_of_its_own_call(tiny) -> None:
    model = FullCMRModel(tiny("llama"), SETTINGS)
    noted = {"recalls": 0, "stored_blocks": 0}
    with CMRPerformanceMonitor(model) as monitor:

        def short() -> None:
            with monitor.measure("forward"):
                pass
            monitor.note(tokens=3, **noted)

        with monitor.measure("generate"):
            time.sleep(0.05)
        other = threading.Thread(target=short)
        other.start()
        other.join(10)
        monitor.note(tokens=100, **noted)
        seconds = dict(monitor._recent)
    assert seconds[3] < 0.05 <= seconds[100]
