"""Tidying up in a thread, between what others do with the memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from cmr._fork import renew
from cmr.config import checks as check
from cmr.optimization.slack import Slack

logger = logging.getLogger("cmr")


class BackgroundOptimizer:
    """Calls a memory's upkeep from time to time, in a thread of its own.

    A memory lets one thread at a time to it and upkeep takes its turn in short pieces, so whoever
    else uses the memory need not know of this.

    Args:
        upkeep: what is to be done, `memory.consolidate` or `model.optimize_memory`; with `slack` it
            is called with `between`, which waits for slack in front of each piece.
        seconds: between two times, above 0.
        slack: when a piece may be done; None: at any time.

    Attributes:
        runs: times that upkeep was done.
        error: what upkeep raised; it is not tried again then. None: nothing.

    Raises:
        ConfigError: `seconds` is no such number.
    """

    def __init__(
        self, upkeep: Callable[..., Any], seconds: float = 60.0, slack: Slack | None = None
    ) -> None:
        self._slack = slack
        self.seconds = check.positive("seconds", seconds)
        self.runs = 0
        self.error: Exception | None = None
        self._upkeep = upkeep
        # Held while the thread is started or ended: two that do so at once would leave one over.
        self._turning = threading.Lock()
        renew(self, "_turning", threading.Lock)
        self._stop = threading.Event()
        renew(self, "_stop", threading.Event)
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def start(self) -> BackgroundOptimizer:
        """Begin; again is no harm."""
        with self._turning:
            if not self.running:
                self._stop.clear()
                self._thread = threading.Thread(target=self._run, name="cmr-upkeep", daemon=True)
                self._thread.start()
        return self

    def close(self) -> None:
        """End the thread; upkeep that has begun is finished first.

        The slack that it waits for must be closed by then.
        """
        with self._turning:
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
            try:
                if self._slack is None:
                    self._upkeep()
                elif self._slack.wait():
                    self._upkeep(between=self._slack.wait)
                else:
                    return
                self.runs += 1
            except Exception as error:
                # It would fail again, and a thread that dies silently would be noticed by nobody.
                self.error = error
                # Its words may hold what is stored: they are for who asks for `error`, not a log.
                logger.error("upkeep failed with %s; not tried again", type(error).__name__)
                return

    def stats(self) -> dict[str, Any]:
        """`runs` so far, whether it is `running`, and the kind of `error`, if any."""
        error = None if self.error is None else type(self.error).__name__
        return {"runs": self.runs, "running": self.running, "error": error}
