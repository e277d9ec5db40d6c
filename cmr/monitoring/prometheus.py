"""A memory and its monitor in the form that Prometheus reads: no name, and nothing that was said.

`page(monitor)` is the text of a `/metrics` endpoint; `cmr serve` has one. Needs the package
prometheus-client: `pip install cmr[prometheus]`.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cmr.integration.memory import Memory
from cmr.monitoring.monitor import CMRPerformanceMonitor

GAUGES = {
    "cmr_sessions": ("Sessions", "sessions"),
    "cmr_stored_tokens": ("Tokens stored", "tokens"),
    "cmr_capacity_tokens": ("Tokens that can be stored", "capacity_tokens"),
}
COUNTERS = {
    "cmr_searches": ("Searches", "searches"),
    "cmr_recalls": ("Searches that found something to read", "recalls"),
    "cmr_evicted_blocks": ("Blocks evicted", "evicted_blocks"),
    "cmr_expired_blocks": ("Blocks expired", "expired_blocks"),
    "cmr_lost_tokens": ("Tokens that could not be stored", "lost_tokens"),
}


class MemoryFigures(Collector):
    """What a memory stores and has done, at the moment that somebody looks."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: to look takes the memory's lock."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The figures."""
        stats = self._memory.stats()
        for name, (about, key) in GAUGES.items():
            yield GaugeMetricFamily(name, about, value=stats[key])
        for name, (about, key) in COUNTERS.items():
            yield CounterMetricFamily(name, about, value=stats[key])
        failed = CounterMetricFamily(
            "cmr_left_out", "What failed and was left out of answers", labels=("stage", "error")
        )
        for stage, errors in stats["failures"].items():
            for error, times in errors.items():
                failed.add_metric([stage, error], times)
        yield failed
        tiers = GaugeMetricFamily("cmr_tier_bytes", "Bytes laid out by tier", labels=("tier",))
        for tier, figures in stats["tiers"].items():
            tiers.add_metric([tier], figures["bytes"])
        yield tiers


class MonitorFigures(Collector):
    """What a monitor has counted since it began to watch."""

    def __init__(self, monitor: CMRPerformanceMonitor) -> None:
        self._monitor = monitor

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The figures."""
        seconds = HistogramMetricFamily(
            "cmr_stage_seconds", "Seconds of requests by stage", labels=("stage",)
        )
        for stage, one in self._monitor.stages.items():
            seconds.add_metric([stage], one.cumulative(), one.total)
        yield seconds
        for name, about, key in (
            ("cmr_calls", "Requests to the model", "calls"),
            ("cmr_call_failures", "Requests to the model that raised", "failures"),
            ("cmr_forward_tokens", "Tokens that went through the model", "tokens"),
        ):
            yield CounterMetricFamily(name, about, value=self._monitor.totals[key])


def page(monitor: CMRPerformanceMonitor) -> bytes:
    """All figures of a monitor and of its memory as text, UTF-8, for Prometheus."""
    registry = CollectorRegistry()
    registry.register(MemoryFigures(monitor.memory))
    registry.register(MonitorFigures(monitor))
    return generate_latest(registry)
