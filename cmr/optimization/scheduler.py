"""Work that is put off until nobody waits for it."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from cmr._fork import renew
from cmr.config import checks as check
from cmr.optimization.slack import Slack

LOG = logging.getLogger("cmr")


class ComputationScheduler:
    """Runs deferred work, the most urgent first: in slack, by a thread of its own, or in `run`.

    May be used from several threads; tasks run one at a time in whichever thread runs them. What a
    task raises in the thread is logged by its kind alone, and the others go on.

    Args:
        budget: seconds that `run` begins tasks for, 0 or more. One task is always begun.
        slack: when the thread may run a task; None: there is no thread, and tasks wait for `run`.

    Attributes:
        done: tasks that ran.

    Raises:
        ConfigError: `budget` is no such number.
    """

    def __init__(self, budget: float = 0.05, slack: Slack | None = None) -> None:
        self.budget = check.real("budget", budget, 0.0)
        self.done = 0
        self._slack = slack
        self._lock = threading.Lock()
        renew(self, "_lock", threading.Lock)
        self._waiting: list[tuple[float, int, str, Callable[[], Any]]] = []
        self._number = itertools.count()
        self._some = threading.Event()
        renew(self, "_some", threading.Event)
        self._stop = False
        # In the child of a fork there is no thread, and the next task makes one.
        self._thread: threading.Thread | None = None
        renew(self, "_thread", lambda: None)

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
            # Made when there is something to do: most schedulers never get a task.
            if self._slack is not None and self._thread is None and not self._stop:
                self._thread = threading.Thread(target=self._work, name="cmr-tasks", daemon=True)
                self._thread.start()
        self._some.set()

    def _work(self) -> None:
        assert self._slack is not None
        while not self._stop:
            self._some.wait()
            if self._stop or not self._slack.wait():
                return
            try:
                self.run(0.0)
            except Exception as error:
                # Its words may hold what is stored: no log gets them.
                LOG.error("a deferred task failed with %s", type(error).__name__)
            with self._lock:
                if not self._waiting:
                    self._some.clear()

    def close(self) -> None:
        """End the thread, a task that has begun is finished first; tasks that wait go on waiting.

        The slack that it waits for must be closed by then.
        """
        self._stop = True
        self._some.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

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
