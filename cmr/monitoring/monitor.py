"""`CMRPerformanceMonitor`: what a model with a memory does, how fast, and whether it is well."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.integration.attach import memory_of
from cmr.integration.memory import Memory
from cmr.integration.models.recorder import Recorder

MOST = ("p95_seconds", "failures", "stored_tokens", "evicted_blocks")
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
    be used from several threads: calls are told apart.

    Args:
        model: a model class of this library, whose `performance` it becomes until `close`, or a
            decoder with a memory attached, whose forwards it measures by hooks.
        window: newest calls that the percentiles and tokens a second speak of, 1 or more.
        limits: measure (see `MOST` and `LEAST`) to the limit that `health` holds it to.
        on_alert: told by `health` of each limit that was crossed since it was last kept.

    Attributes:
        failures: calls that raised something.

    Raises:
        AttachError: the model has no memory.
        ConfigError: an unknown measure, or a value out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int = 256,
        limits: Mapping[str, float] | None = None,
        on_alert: Callable[[Alert], None] | None = None,
    ) -> None:
        super().__init__()
        self._model = cast(Any, model)
        # A model class has its memory as an attribute, and a recorder whose place this takes.
        self._classed = memory_of(model) is getattr(model, "memory", None)
        self._recent: deque[tuple[int, float]] = deque(maxlen=check.integer("window", window, 1))
        self.limits: dict[str, float] = {}
        for name, limit in (limits or {}).items():
            if name not in MOST + LEAST:
                said = check.nearest(name, MOST + LEAST)
                raise ConfigError(f"limits: no measure is named {name!r}: {said}")
            self.limits[name] = check.real(name, limit, 0.0)
        self._on_alert, self._crossed = on_alert, set[str]()
        self.failures = 0
        # `calls` of this thread, the innermost last: a forward may run another one.
        self._under_way = threading.local()
        self._handles: list[Any] = []
        self._replaced: Any = None
        if self._classed:
            self._replaced, self._model.performance = self._model.performance, self
        else:
            self._handles = [
                model.register_forward_pre_hook(self._before, with_kwargs=True),
                model.register_forward_hook(self._after, always_call=True),
            ]

    @property
    def memory(self) -> Memory:
        """The memory that is watched."""
        return memory_of(self._model)

    def close(self) -> None:
        """Stop watching; the model is as it was. What was measured stays to be read."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._classed and self._model.performance is self:
            self._model.performance = self._replaced

    def __enter__(self) -> CMRPerformanceMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what calls tell -------------------------------------------------------------------------

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Measure one call, 'forward' or 'generate'; one that raises counts as a failure."""
        try:
            with super().measure(kind):
                yield
        except BaseException:
            self._failed()
            raise

    def note(self, *, tokens: int, recalls: int, stored_blocks: int) -> None:
        """Take note of what the call that was just measured did; see `Recorder.note`."""
        super().note(tokens=tokens, recalls=recalls, stored_blocks=stored_blocks)
        with self._counting:
            self._recent.append((tokens, self._mine.seconds))

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        tokens = 0 if given is None else given.shape[0] * given.shape[1]
        calls = self._under_way.__dict__.setdefault("calls", [])
        calls.append((time.perf_counter(), tokens))

    def _after(self, _: nn.Module, __: Any, output: Any) -> None:
        calls = self._under_way.__dict__.get("calls")
        # Begun before it was watched.
        if not calls:
            return
        began, tokens = calls.pop()
        # PyTorch calls the hook without an output where the forward raised.
        if output is None:
            self._failed()
            return
        self._measured("forward", time.perf_counter() - began)
        self.note(tokens=tokens, recalls=0, stored_blocks=0)

    def _failed(self) -> None:
        with self._counting:
            self.failures += 1

    # -- looking ---------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        """All measures as plain numbers, None where nothing happened yet. Waits for the device.

        Returns:
            `calls`, `failures`; of the newest calls `p50_seconds`, `p95_seconds` and
            `tokens_per_second`; `recall_rate`, the share of searches that found something to read;
            `stored_tokens`, `sessions`, `evicted_blocks`, `expired_blocks`, `bytes` of the memory,
            and `tiers`: see `Memory.stats`.
        """
        stats = self.memory.stats()
        with self._counting:
            recent, calls, failures = list(self._recent), sum(self._calls.values()), self.failures
        seconds = sorted(spent for _, spent in recent)
        spent, tokens = sum(seconds), sum(count for count, _ in recent)
        return {
            "calls": calls,
            "failures": failures,
            "p50_seconds": _percentile(seconds, 0.50),
            "p95_seconds": _percentile(seconds, 0.95),
            "tokens_per_second": tokens / spent if spent else None,
            "recall_rate": stats["recalls"] / stats["searches"] if stats["searches"] else None,
            "stored_tokens": stats["tokens"],
            **{name: stats[name] for name in ("sessions", "evicted_blocks", "expired_blocks")},
            "bytes": stats["bytes"],
            "tiers": stats["tiers"],
        }

    def health(self) -> dict[str, Any]:
        """Whether every limit holds; tells `on_alert` of those that were crossed since they did.

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
        names = {alert.name for alert in alerts}
        for alert in alerts:
            if self._on_alert is not None and alert.name not in self._crossed:
                self._on_alert(alert)
        self._crossed = names
        return {"healthy": not alerts, "alerts": alerts}


def _percentile(ordered: list[float], share: float) -> float | None:
    """The least value that at least this share of the values does not exceed."""
    if not ordered:
        return None
    rank = -(-share * len(ordered) // 1)
    return ordered[max(0, int(rank) - 1)]
