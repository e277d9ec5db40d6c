"""The threshold that a wanted share of scores reaches, from the newest ones."""

from __future__ import annotations

from collections import deque

EDGE = 1e-4
"""Relative distance of a threshold from a score that it is to let pass, or not."""


class TrailingQuantile:
    """An empirical quantile of the newest scores.

    Args:
        span: scores that are remembered.
    """

    def __init__(self, span: int) -> None:
        self._scores: deque[float] = deque(maxlen=span)

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, score: float) -> None:
        """Take note of a score; the oldest one is forgotten where there are too many."""
        self._scores.append(score)

    def share(self, threshold: float) -> float:
        """Share of the scores that are at least `threshold`."""
        return sum(score >= threshold for score in self._scores) / len(self._scores)

    def at(self, share: float) -> float:
        """A threshold that as near to this share of the scores reach as equal scores allow.

        It lies half-way between two scores, or just beside those that are equal.
        """
        falling = sorted(self._scores, reverse=True)
        wanted = min(max(round(share * len(falling)), 0), len(falling))
        # Equal scores pass together or not at all: the edge of theirs that is nearer.
        above = wanted
        while 0 < above < len(falling) and falling[above - 1] == falling[above]:
            above -= 1
        below = wanted
        while 0 < below < len(falling) and falling[below - 1] == falling[below]:
            below += 1
        passing = above if wanted - above < below - wanted else below
        if passing == 0:
            return falling[0] + EDGE * abs(falling[0])
        if passing == len(falling):
            return falling[-1] - EDGE * abs(falling[-1])
        return (falling[passing - 1] + falling[passing]) / 2
