"""A threshold of recall that follows how often memory is to be read."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from cmr._fork import renew
from cmr.config import checks as check
from cmr.integration.memory import Memory


class AdaptiveThresholdManager:
    """Moves a memory's `threshold`, so that a wanted share of requests recalls something.

    After each request the threshold goes up by `step * (1 - rate)` where memory was read, and down
    by `step * rate` where it was not: over n requests the share that recalled is off by at most
    (high - low) / (step * n), whatever the requests are, as long as the threshold stays
    strictly between its bounds. May be used from several threads.

    Args:
        memory: the memory to steer; its present threshold is where this begins.
        rate: share of requests that are to recall something, in (0, 1).
        step: how far the threshold moves at most, above 0.
        low: least threshold, 0 or more; at 0 everything recalls.
        high: greatest one, above `low`.

    Attributes:
        seen: requests so far.
        recalled: how many of them recalled something.

    Raises:
        ConfigError: a value is out of its range.

    Source: Gibbs and Candès (2021), Adaptive Conformal Inference Under Distribution Shift.
    """

    def __init__(
        self,
        memory: Memory,
        rate: float = 0.5,
        step: float = 0.05,
        low: float = 0.0,
        high: float = 2.0,
    ) -> None:
        self.rate = check.real("rate", rate, 0.0, 1.0)
        self.step = check.positive("step", step)
        self.low = check.real("low", low, 0.0)
        self.high = check.real("high", high, 0.0)
        if not 0 < self.rate < 1:
            raise check.refuse("rate", rate, "a share above 0 and below 1")
        if self.high <= self.low:
            raise check.refuse("high", high, f"a number above low ({low})")
        self._memory = memory
        self.seen = self.recalled = 0
        self._updating = threading.Lock()
        renew(self, "_updating", threading.Lock)

    @property
    def threshold(self) -> float:
        """The threshold that holds now."""
        return self._memory.config.retrieval.threshold

    def update(self, recalled: Iterable[bool]) -> float:
        """Take note whether requests read memory, in order; gives the threshold from now on."""
        with self._updating:
            before = now = self.threshold
            for read in recalled:
                now += self.step * (float(read) - self.rate)
                # Without bounds a long run of one kind would take as long a run to be undone.
                now = min(max(now, self.low), self.high)
                self.seen += 1
                self.recalled += bool(read)
            if now != before:
                self._memory.change(threshold=now)
        return now

    def stats(self) -> dict[str, Any]:
        """`threshold`, `rate` that is wanted, `requests` so far, and `recalled`, their share."""
        with self._updating:
            seen, recalled = self.seen, self.recalled
        return {
            "threshold": self.threshold,
            "rate": self.rate,
            "requests": seen,
            "recalled": recalled / seen if seen else None,
        }
