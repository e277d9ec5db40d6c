"""Figures of a server, in the form that Prometheus reads: no name, and nothing that was said."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cmr.integration.memory import Memory
from cmr.serving.engines.engine import Engine
from cmr.serving.engines.job import Ended, Job
from cmr.serving.keeping import Keeping

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)


class Watch:
    """The figures of one server."""

    def __init__(self, memory: Memory, engine: Engine, keeping: Keeping) -> None:
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
        own.register(_Stored(memory, engine, keeping))

    def request(self, endpoint: str, status: int) -> None:
        """A request was replied to."""
        self._requests.labels(endpoint, str(status)).inc()

    def answer(self, job: Job, ended: Ended) -> None:
        """An answer was given."""
        self._answers.labels(ended.reason).inc()
        self._tokens.labels("prompt").inc(len(job.ids))
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


class _Stored(Collector):
    """What is stored, and who waits, at the moment that somebody looks."""

    def __init__(self, memory: Memory, engine: Engine, keeping: Keeping) -> None:
        self._memory, self._engine, self._keeping = memory, engine, keeping

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: to look takes the memory's lock."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The figures."""
        stats = self._memory.stats()
        waiting, running = self._engine.load
        for name, about, value in (
            ("cmr_waiting_requests", "Requests that wait for the model", waiting),
            ("cmr_running_requests", "Requests that are being answered", running),
            ("cmr_sessions", "Sessions", stats["sessions"]),
            ("cmr_stored_tokens", "Tokens stored", stats["tokens"]),
            ("cmr_capacity_tokens", "Tokens that can be stored", stats["capacity_tokens"]),
            ("cmr_saved_until_seconds", "Unix time; what was stored until then is saved",
             self._keeping.saved_until),
            ("cmr_save_failing", "1 where the last save failed", bool(self._keeping.failed)),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, about, value=value)
        for name, about, value in (
            ("cmr_searches", "Searches", stats["searches"]),
            ("cmr_recalls", "Searches that found something to read", stats["recalls"]),
            ("cmr_evicted_blocks", "Blocks evicted", stats["evicted_blocks"]),
            ("cmr_expired_blocks", "Blocks expired", stats["expired_blocks"]),
            ("cmr_saves", "Saves done", self._keeping.saves),
            ("cmr_save_failures", "Saves that failed", self._keeping.failures),
        ):
            yield CounterMetricFamily(name, about, value=value)
        tiers = GaugeMetricFamily("cmr_tier_bytes", "Bytes laid out by tier", labels=("tier",))
        for tier, figures in stats["tiers"].items():
            tiers.add_metric([tier], figures["bytes"])
        yield tiers
