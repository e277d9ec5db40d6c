"""`CMRPerformanceMonitor`: what it counts, what it alerts of, and that it changes nothing."""

from __future__ import annotations

import json
import sys
import threading
import time

import pytest
import torch

import cmr
from cmr import AttachError, CMRPerformanceMonitor, ConfigError, FullCMRModel
from cmr.integration.requests.timing import Took
from cmr.monitoring.histogram import Histogram
from cmr.monitoring.monitor import _percentile
from cmr.retrieval import Retriever
from tests.integration.tiny import text

READS = {"threshold": 0.0, "target_layers": (1, 2, 3), "sink_guard": 0}
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
    assert found["tokens_per_second"] > 0 and found["totals"]["tokens"] >= 176
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
        assert (found["calls"], found["failures"]) == (2, 1)
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


def test_only_the_newest_calls_count(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, now = FullCMRModel(tiny("llama"), SETTINGS), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with CMRPerformanceMonitor(model, window=2, seconds=60.0) as monitor:
        for seconds in (9.0, 1.0, 3.0):
            monitor._note_call(seconds, "")
            monitor._took(Took("token", seconds, 8))
        found = monitor.metrics()
        assert (found["p50_seconds"], found["p95_seconds"]) == (1.0, 3.0)
        assert found["tokens_per_second"] == 24 / 13
        now[0] += 90.0
        found = monitor.metrics()
    assert found["calls"] == 0 and found["totals"]["calls"] == 3
    assert found["tokens_per_second"] is found["p50_seconds"] is None
    assert found["stages"]["token"] == {"count": 3, "seconds": 13.0, "p50": 5.0, "p95": 10.0}


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


def test_a_request_is_a_call_however_many_tokens_it_has(llama) -> None:
    with cmr.attach(llama, window=64, **READS) as memory, CMRPerformanceMonitor(llama) as monitor:
        memory.read(text(200))
        cache = llama(text(1, 9), use_cache=True).past_key_values
        for _ in range(5):
            llama(text(1, 1), past_key_values=cache)
        assert monitor.metrics()["calls"] == 1
        llama.generate(text(1, 8), max_new_tokens=4, do_sample=False)
        llama.generate(text(2, 100), max_new_tokens=4, do_sample=False, num_beams=2)
        found = monitor.metrics()
    assert found["calls"] == found["totals"]["calls"] == 3
    stages = found["stages"]
    assert stages["token"]["count"] == 5 + 3 + 3 and stages["prompt"]["count"] >= 3
    assert {"search", "read", "reweave", "store"} <= set(stages)
    inner = sum(stages[name]["seconds"] for name in ("search", "read", "reweave", "store"))
    assert inner < stages["prompt"]["seconds"] + stages["token"]["seconds"]
    assert 0 < found["recall_rate"] <= 1
    assert found["totals"]["tokens"] >= 9 + 5 + 8 + 3 + 2 * 2 * 100


def test_nobody_is_told_when_nobody_watches(llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off is free: no clock is read."""
    with cmr.attach(llama, window=64, **READS) as memory:
        memory.read(text(200))
        monitor, clock, reads = CMRPerformanceMonitor(llama), time.perf_counter, []

        def count() -> float:
            reads.append(sys._getframe(1).f_globals["__name__"])
            return clock()

        monkeypatch.setattr(time, "perf_counter", count)
        llama.generate(text(1, 8), max_new_tokens=4, do_sample=False)
        assert any(name.startswith("cmr.integration") for name in reads)
        monitor.close()
        reads.clear()
        llama.generate(text(1, 8), max_new_tokens=4, do_sample=False)
        assert not [name for name in reads if name.startswith("cmr.")]


def test_what_memory_left_out_alerts_until_it_has_passed(
    llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, now = [], [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with (
        cmr.attach(llama, window=64, **READS) as memory,
        CMRPerformanceMonitor(
            llama, seconds=60.0, limits={"left_out": 0}, on_alert=told.append
        ) as monitor,
    ):
        memory.read(text(200))
        with monkeypatch.context() as broken:
            broken.setattr(Retriever, "search", lambda *_: 1 / 0)
            llama(text(1, 8))
        assert monitor.metrics()["failures"] == 0, "the request was answered"
        assert not monitor.health()["healthy"] and len(told) == 1
        assert monitor.left_out == {"search: ZeroDivisionError": 1}
        now[0] += 61.0
        assert monitor.health()["healthy"]
        assert monitor.totals["left_out"] == 1


@pytest.mark.parametrize("who", ["alert", "watcher"])
def test_who_watches_breaks_nothing(who: str, llama, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_) -> None:
        raise RuntimeError("what anna said")

    with cmr.attach(llama, window=64, **READS) as memory:
        limits = {"stored_tokens": 0}
        monitor = CMRPerformanceMonitor(llama, limits=limits, on_alert=fails)
        ends = memory.watch(fails) if who == "watcher" else monitor.health
        memory.read(text(200))
        want = llama(text(1, 8)).logits
        assert torch.equal(llama(text(1, 8)).logits, want)
        assert not monitor.health()["healthy"] and monitor.metrics()["calls"] == 2
        ends()
        assert caplog.records and "what anna said" not in caplog.text


def test_calls_of_two_threads_are_all_counted(llama) -> None:
    with cmr.attach(llama, window=64, **READS) as memory, CMRPerformanceMonitor(llama) as monitor:
        memory.read(text(200), sessions=["anna"])

        def ask() -> None:
            for _ in range(4):
                anna.generate(text(1, 8), max_new_tokens=3, do_sample=False)

        anna = memory.session("anna")
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        found = monitor.metrics()
    assert (found["calls"], found["failures"]) == (8, 0)
    assert found["stages"]["token"]["count"] == 16


def test_a_call_that_raises_is_a_failure(llama) -> None:
    with cmr.attach(llama, window=64), CMRPerformanceMonitor(llama) as monitor:
        with pytest.raises(IndexError):
            llama.generate(torch.full((1, 8), 10**6), max_new_tokens=2)
        with pytest.raises(AttributeError):
            llama(text(1, 8), past_key_values=object())
        found = monitor.metrics()
    assert (found["calls"], found["failures"]) == (0, 2)


def test_buckets() -> None:
    one = Histogram()
    for seconds in (0.0001, 0.00011, 0.3, 100.0):
        one.add(seconds)
    assert dict(one.cumulative())["0.0001"] == 1 and dict(one.cumulative())["0.00025"] == 2
    assert one.cumulative()[-1] == ("+Inf", 4) and dict(one.cumulative())["60.0"] == 3
    assert one.to_dict()["p50"] == 0.00025 and one.to_dict()["p95"] is None
