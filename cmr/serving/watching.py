"""Figures of a server, in the form that Prometheus reads: no name, and nothing that was said."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from torch import nn

from cmr.monitoring.monitor import CMRPerformanceMonitor
from cmr.monitoring.prometheus import MemoryFigures, MonitorFigures
from cmr.serving.engines.engine import Engine
from cmr.serving.engines.job import Ended
from cmr.serving.keeping import Keeping

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)


class Watch:
    """The figures of one server, with those of the model's monitor, which `close` ends."""

    def __init__(self, model: nn.Module, engine: Engine, keeping: Keeping) -> None:
        monitor = CMRPerformanceMonitor(model)
        self.close = monitor.close
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "cmr_requests", "Requests by endpoint and status", ("endpoint", "status"), registry=own
        )
        self._answers = Counter("cmr_answers", "Answers by their end", ("reason",), registry=own)
        self._tokens = Counter("cmr_tokens", "Tokens of prompts, of answers and recalled",
                               ("kind",), registry=own)  # fmt: skip
        self._recalled = Counter("cmr_recalled_answers", "Answers that read memory", registry=own)
        self._stages = Histogram("cmr_answer_seconds", "Seconds of answers by stage", ("stage",),
                                 registry=own, buckets=SECONDS)  # fmt: skip
        for figures in (
            MemoryFigures(monitor.memory), MonitorFigures(monitor), _Served(engine, keeping),
        ):  # fmt: skip
            own.register(figures)

    def request(self, endpoint: str, status: int) -> None:
        """A request was replied to."""
        self._requests.labels(endpoint, str(status)).inc()

    def answer(self, ended: Ended) -> None:
        """An answer was given."""
        self._answers.labels(ended.reason).inc()
        self._tokens.labels("prompt").inc(ended.prompt)
        self._tokens.labels("answer").inc(ended.tokens)
        self._tokens.labels("recalled").inc(sum(passage.tokens for passage in ended.recalled))
        if ended.recalled:
            self._recalled.inc()
        for stage, seconds in (("waiting", ended.waited), ("first_token", ended.first),
                               ("whole", ended.seconds)):  # fmt: skip
            self._stages.labels(stage).observe(seconds)

    def page(self) -> bytes:
        """All figures as text."""
        return generate_latest(self._registry)


class _Served(Collector):
    """Who waits, and what was saved, at the moment that somebody looks."""

    def __init__(self, engine: Engine, keeping: Keeping) -> None:
        self._engine, self._keeping = engine, keeping

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The figures."""
        waiting, running = self._engine.load
        for name, about, value in (
            ("cmr_waiting_requests", "Requests that wait for the model", waiting),
            ("cmr_running_requests", "Requests that are being answered", running),
            ("cmr_saved_until_seconds", "Unix time; what was stored until then is saved",
             self._keeping.saved_until),
            ("cmr_save_failing", "1 where the last save failed", bool(self._keeping.failed)),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, about, value=value)
        for name, about, value in (
            ("cmr_saves", "Saves done", self._keeping.saves),
            ("cmr_save_failures", "Saves that failed", self._keeping.failures),
        ):
            yield CounterMetricFamily(name, about, value=value)
