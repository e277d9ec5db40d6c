"""Upkeep that waits until nobody does."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from cmr._fork import renew
from cmr.config import checks as check


class ComputationScheduler:
    """Runs deferred work between requests: the most urgent first, within a time budget.

    May be used from several threads; tasks run in the thread that calls `run`, one at a time.

    Args:
        budget: seconds that `run` begins tasks for, 0 or more. One task is always begun.

    Attributes:
        done: tasks that ran.

    Raises:
        ConfigError: `budget` is no such number.
    """

    def __init__(self, budget: float = 0.05) -> None:
        self.budget = check.real("budget", budget, 0.0)
        self.done = 0
        self._lock = threading.Lock()
        renew(self, "_lock", threading.Lock)
        self._waiting: list[tuple[float, int, str, Callable[[], Any]]] = []
        self._number = itertools.count()

    def submit(self, name: str, task: Callable[[], Any], priority: float = 0.0) -> None:
        """Let a task wait for its turn, in the place of one of its name that waits already.

        `priority`: the higher, the sooner; equal ones in the order in which they came.
        """
        if not callable(task):
            raise TypeError(f"task: something to call expected, got {type(task).__name__}")
        # The number keeps equal priorities in the order in which they came.
        entry = (-check.real("priority", priority, -math.inf), next(self._number), name, task)
        with self._lock:
            self._waiting = [other for other in self._waiting if other[2] != name]
            self._waiting.append(entry)
            heapq.heapify(self._waiting)

    @property
    def waiting(self) -> list[str]:
        """Names of the tasks that wait, the next one first."""
        with self._lock:
            return [name for _, _, name, _ in sorted(self._waiting, key=lambda entry: entry[:2])]

    def run(self, budget: float | None = None) -> dict[str, Any]:
        """Run tasks until none waits or the budget (seconds) is spent; what they gave, by name.

        What a task raises is raised here; it is gone then, and the others go on waiting.
        """
        limit = self.budget if budget is None else check.real("budget", budget, 0.0)
        began = time.monotonic()
        results: dict[str, Any] = {}
        while True:
            with self._lock:
                if not self._waiting:
                    return results
                _, _, name, task = heapq.heappop(self._waiting)
            # Outside of the lock: a task may submit others, or take long.
            results[name] = task()
            with self._lock:
                self.done += 1
            if time.monotonic() - began >= limit:
                return results

    def stats(self) -> dict[str, Any]:
        """`done` so far, and how many are `waiting`."""
        return {"done": self.done, "waiting": len(self.waiting)}
