"""`CMRPerformanceMonitor`: what a model with a memory does, how fast, and whether it is well."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from cmr._fork import renew
from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.integration.attach import memory_of
from cmr.integration.memory import Memory
from cmr.integration.models.recorder import Recorder
from cmr.integration.requests.timing import Took
from cmr.monitoring.histogram import Histogram, Rolling

LOG = logging.getLogger("cmr")
STAGES = ("call", "prompt", "token", "search", "read", "reweave", "store")
"""What is timed; see `Took`."""
MOST = ("p95_seconds", "failures", "left_out", "stored_tokens", "evicted_blocks")
# Measures that may be limited: to a greatest value, or to a least one.
LEAST = ("tokens_per_second", "recall_rate")


@dataclass(frozen=True)
class Alert:
    """A measure beyond the limit that was given for it."""

    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        side = "at most" if self.name in MOST else "at least"
        return f"{self.name}: {side} {self.limit:g} expected, got {self.value:.4g}"


class CMRPerformanceMonitor(Recorder):
    """Watches one model: counts, times, what is stored, and limits that should hold.

    It changes nothing of what the model does, and holds no text, token ids or states. The model may
    be used from several threads.

    Args:
        model: a model class of this library, whose `performance` it becomes until `close`, or a
            decoder with a memory attached.
        window: newest calls that the percentiles speak of at most, 1 or more.
        seconds: how far back calls, failures and rates go, above 0.
        limits: measure (see `MOST` and `LEAST`) to the limit that `health` holds it to.
        on_alert: told by `health` of each limit that was crossed since it was last kept. What it
            raises is logged.

    Attributes:
        stages: a `Histogram` of seconds for each of `STAGES`, since it began to watch.
        totals: since then `calls`, `failures` (calls that raised something), `tokens`, `searches`,
            `found` (searches that gave layers something to read) and `left_out` (what failed of the
            memory and was left out).
        left_out: these by stage and error, as '<stage>: <error>'.

    Raises:
        AttachError: the model has no memory.
        ConfigError: an unknown measure, or a value out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int = 256,
        seconds: float = 300.0,
        limits: Mapping[str, float] | None = None,
        on_alert: Callable[[Alert], None] | None = None,
    ) -> None:
        super().__init__()
        self._model = cast(Any, model)
        memory = memory_of(model)
        # A model class has its memory as an attribute, and a recorder whose place this takes.
        self._classed = memory is getattr(model, "memory", None)
        self._seconds = check.positive("seconds", seconds, "a number of seconds")
        self._newest: deque[tuple[float, float]] = deque(maxlen=check.integer("window", window, 1))
        self.limits: dict[str, float] = {}
        for name, limit in (limits or {}).items():
            if name not in MOST + LEAST:
                said = check.nearest(name, MOST + LEAST)
                raise ConfigError(f"limits: no measure is named {name!r}: {said}")
            self.limits[name] = check.real(name, limit, 0.0)
        self._on_alert, self._crossed = on_alert, set[str]()
        self.stages = {stage: Histogram() for stage in STAGES}
        self.totals: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._recent = Rolling(self._seconds)
        self._looking = threading.Lock()
        renew(self, "_looking", threading.Lock)
        self._end = memory.watch(self._took)
        self._replaced: Any = None
        if self._classed:
            self._replaced, self._model.performance = self._model.performance, self

    @property
    def memory(self) -> Memory:
        """The memory that is watched."""
        return memory_of(self._model)

    def close(self) -> None:
        """Stop watching; the model is as it was. What was measured stays to be read."""
        self._end()
        if self._classed and self._model.performance is self:
            self._model.performance = self._replaced

    def __enter__(self) -> CMRPerformanceMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is told ----------------------------------------------------------------------------

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Measure one call of a model class; one that raises counts as a failure."""
        began, error = time.perf_counter(), "raised"
        try:
            with super().measure(kind):
                yield
            error = ""
        finally:
            self._note_call(time.perf_counter() - began, error)

    def _took(self, took: Took) -> None:
        """Take note of what a request did; in its thread, so this is quick."""
        stage = took.stage
        if stage == "call":
            # A model class runs several forwards for a call, and measures it itself.
            if not self._classed:
                self._note_call(took.seconds, took.error)
            return
        with self._looking:
            if stage == "left_out":
                self.left_out[took.error] += 1
                self._count("left_out")
            elif stage == "found":
                self._count("found")
            elif not took.error:
                self.stages[stage].add(took.seconds)
                if stage == "search":
                    self._count("searches")
                elif took.tokens:
                    self._count("tokens", took.tokens)
                    self._recent.add("seconds", took.seconds)
                    if not self._classed:
                        self._measured("forward", took.seconds)
                        self.note(tokens=took.tokens, recalls=0, stored_blocks=0)

    def _note_call(self, seconds: float, error: str) -> None:
        with self._looking:
            self._count("failures" if error else "calls")
            if not error:
                self.stages["call"].add(seconds)
                self._newest.append((time.monotonic(), seconds))

    def _count(self, name: str, amount: int = 1) -> None:
        self.totals[name] += amount
        self._recent.add(name, amount)

    # -- looking ---------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        """All measures as plain numbers, None where nothing happened. Waits for the device.

        Returns:
            Of the last `seconds`: `calls` (requests: a `generate`, or a forward outside of one that
            does not go on with a text by one token), `failures` and `left_out`; `p50_seconds` and
            `p95_seconds` of the newest of these calls; `tokens_per_second` of the time in forwards;
            `recall_rate`, the share of searches that found something to read. Since it began to
            watch: `totals`, and `stages`, of each that happened `count`, `seconds`, `p50`, `p95`
            (see `Histogram.to_dict`). As it is now: `stored_tokens`, `sessions`, `evicted_blocks`,
            `expired_blocks`, `bytes` of the memory, and `tiers`: see `Memory.stats`.
        """
        stats = self.memory.stats()
        with self._looking:
            recent, oldest = self._recent.sums(), time.monotonic() - self._seconds
            spent = sorted(seconds for at, seconds in self._newest if at > oldest)
            totals = dict(self.totals)
            stages = {n: one.to_dict() for n, one in self.stages.items() if any(one.counts)}
        searches, busy = recent["searches"], recent["seconds"]
        return {
            **{name: int(recent[name]) for name in ("calls", "failures", "left_out")},
            "p50_seconds": _percentile(spent, 0.50),
            "p95_seconds": _percentile(spent, 0.95),
            "tokens_per_second": recent["tokens"] / busy if busy else None,
            "recall_rate": recent["found"] / searches if searches else None,
            "totals": totals,
            "stages": stages,
            "stored_tokens": stats["tokens"],
            **{name: stats[name] for name in ("sessions", "evicted_blocks", "expired_blocks")},
            "bytes": stats["bytes"],
            "tiers": stats["tiers"],
        }

    def health(self) -> dict[str, Any]:
        """Whether every limit holds; tells `on_alert` of those that were crossed since they did.

        It is well again when what crossed a limit is longer ago than `seconds`.

        Returns:
            `healthy`, and `alerts`: an `Alert` for each limit that does not hold.
        """
        metrics = self.metrics()
        alerts = []
        for name, limit in self.limits.items():
            value = metrics[name]
            if value is not None and (value > limit if name in MOST else value < limit):
                alerts.append(Alert(name, float(value), limit))
        # Told once, when it is crossed, and again only after it was kept in between.
        with self._looking:
            crossed, self._crossed = self._crossed, {alert.name for alert in alerts}
        for alert in alerts:
            if self._on_alert is not None and alert.name not in crossed:
                try:
                    self._on_alert(alert)
                except Exception as error:
                    LOG.warning("on_alert of %s raised %s", alert.name, type(error).__name__)
        return {"healthy": not alerts, "alerts": alerts}


def _percentile(ordered: list[float], share: float) -> float | None:
    """The least value that at least this share of the values does not exceed."""
    if not ordered:
        return None
    rank = -(-share * len(ordered) // 1)
    return ordered[max(0, int(rank) - 1)]
