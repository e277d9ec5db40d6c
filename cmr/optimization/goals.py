"""What a share of requests that recall has to be for their mean cost to come to a goal."""

from __future__ import annotations

from collections import deque
from statistics import fmean, variance

LEAST = 8
"""Requests of each kind before their costs are compared."""
STEP = 0.125
"""By how much the share moves where requests of one kind are still to be seen."""


class MeanCost:
    """Costs of requests that recalled and of those that did not.

    Where a share p of them recalls, their mean is (1 - p) idle + p busy, which is solved for p.

    Args:
        goal: the mean that is wanted.
        span: newest requests of each kind that are looked at.
        idle: what a request costs that recalls nothing; None: it is measured.
    """

    def __init__(self, goal: float, span: int, idle: float | None = None) -> None:
        self.goal, self._idle = goal, idle
        self._costs: dict[bool, deque[float]] = {kind: deque(maxlen=span) for kind in (False, True)}
        self._tried: float | None = None

    def add(self, cost: float, recalled: bool) -> None:
        """Take note of a request."""
        self._costs[recalled].append(cost)
        if self._tried is None:
            self._tried = float(recalled)
        if self.gain is not None:
            self._tried = min(max(self._solved(), 0.0), 1.0)
        elif self.idle is None or self.busy is None:
            # Requests of one kind alone have been seen: some of the other kind are let through.
            self._tried = min(max(self._tried + (-STEP if cost > self.goal else STEP), 0.0), 1.0)

    @property
    def idle(self) -> float | None:
        """Mean cost of a request that recalls nothing; None: not known yet."""
        if self._idle is not None:
            return self._idle
        costs = self._costs[False]
        return fmean(costs) if len(costs) >= LEAST else None

    @property
    def busy(self) -> float | None:
        """Mean cost of one that recalls; None: not known yet."""
        costs = self._costs[True]
        return fmean(costs) if len(costs) >= (1 if self._idle is not None else LEAST) else None

    @property
    def gain(self) -> float | None:
        """By how much recalling raises the mean; None: not known, or lost in the spread."""
        if self.idle is None or self.busy is None:
            return None
        spread = 0.0
        if self._idle is None:
            # Two standard errors of the difference: less than that may be chance.
            each = (variance(costs) / len(costs) for costs in self._costs.values())
            spread = 2 * sum(each) ** 0.5
        gain = self.busy - self.idle
        return gain if gain > max(spread, 0.0) else None

    @property
    def share(self) -> float:
        """Share that is to recall, outside of [0, 1] where none reaches the goal.

        Where too little is known it is a step towards the goal, and where recalling costs nothing
        that could be told it stays.
        """
        return self._solved() if self.gain is not None else self._tried or 0.0

    def _solved(self) -> float:
        assert self.gain is not None and self.idle is not None
        return (self.goal - self.idle) / self.gain
