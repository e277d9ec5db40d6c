"""Counts in fixed buckets, and sums over the last minutes: what is watched, in little room."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of the buckets; one more takes what is above."""


class Histogram:
    """Seconds in the buckets of `SECONDS`.

    Attributes:
        counts: of each bucket, the last one of what is above all bounds.
        total: of all that was added, in seconds.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, int]]:
        """Upper bound as text, and how many are at most that; the last one is '+Inf'."""
        found, so_far = [], 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self.counts, strict=True):
            so_far += count
            found.append((bound, so_far))
        return found

    def to_dict(self) -> dict[str, float | None]:
        """`count`, `seconds` in all, and `p50` and `p95`: bounds of the buckets they fall into.

        A percentile above all bounds is None.
        """
        count = sum(self.counts)
        found: dict[str, float | None] = {"count": count, "seconds": self.total}
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            if count:
                reached = next(b for b, n in self.cumulative() if n >= share * count)
                found[name] = None if reached == "+Inf" else float(reached)
        return found


class Rolling:
    """Sums of the last `seconds`, to within a part of them: older ones are let go.

    Args:
        seconds: how far back, above 0.
    """

    PARTS = 30

    def __init__(self, seconds: float) -> None:
        self._width = seconds / self.PARTS
        self._parts: dict[int, Counter[str]] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """So much more of something, now."""
        now = int(time.monotonic() / self._width)
        part = self._parts.get(now)
        if part is None:
            self._parts = {n: old for n, old in self._parts.items() if n > now - self.PARTS}
            part = self._parts[now] = Counter()
        part[name] += amount  # type: ignore[assignment]

    def sums(self) -> Counter[str]:
        """All of them, by name; 0 for what did not happen."""
        now, found = int(time.monotonic() / self._width), Counter[str]()
        for number, part in self._parts.items():
            if number > now - self.PARTS:
                found.update(part)
        return found
