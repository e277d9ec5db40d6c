"""Tidying up in a thread, while nothing else uses the memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from cmr import _checks as check

logger = logging.getLogger("cmr")

WAIT = 0.05
"""Seconds between looks whether to end, while others hold the lock."""


class BackgroundOptimizer:
    """Calls a memory's upkeep from time to time, in a thread of its own.

    A memory is not made for several threads: whoever else uses it meanwhile holds `lock`, as
    `CMRPerformanceOptimizer` does around its forwards.

    Args:
        upkeep: what is to be done, `memory.consolidate` or `model.optimize_memory`.
        seconds: between two times, above 0.
        lock: held during upkeep; None: one of its own.

    Attributes:
        lock: the lock.
        runs: times that upkeep was done.
        error: what upkeep raised; it is not tried again then. None: nothing.

    Raises:
        ConfigError: `seconds` is no such number.
    """

    def __init__(
        self,
        upkeep: Callable[[], Any],
        seconds: float = 60.0,
        lock: Any = None,
    ) -> None:
        self.seconds = check.real("seconds", seconds, 0.0)
        if self.seconds == 0:
            raise check.refuse("seconds", seconds, "a number above 0")
        self.lock: Any = threading.RLock() if lock is None else lock
        self.runs = 0
        self.error: Exception | None = None
        self._upkeep = upkeep
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> BackgroundOptimizer:
        """Begin; again is no harm."""
        if not self.running:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="cmr-upkeep", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """End the thread; upkeep that has begun is finished first."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> BackgroundOptimizer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            while not self.lock.acquire(timeout=WAIT):
                if self._stop.is_set():
                    return
            try:
                self._upkeep()
                self.runs += 1
            except Exception as error:
                self.error = error
                # Its words may hold what is stored: they are for who asks for `error`, not a log.
                logger.error("upkeep failed with %s; not tried again", type(error).__name__)
                return
            finally:
                self.lock.release()

    def stats(self) -> dict[str, Any]:
        """`runs` so far, whether it is `running`, and the kind of `error`, if any."""
        error = None if self.error is None else type(self.error).__name__
        return {"runs": self.runs, "running": self.running, "error": error}
