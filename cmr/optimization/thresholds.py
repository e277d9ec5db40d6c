"""A threshold that holds how often memory is read, what that costs, or how much is read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from cmr._fork import renew
from cmr._warning import warn
from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.integration.memory import Memory
from cmr.integration.requests.answers import Answer
from cmr.optimization.goals import MeanCost
from cmr.optimization.quantiles import TrailingQuantile

TARGETS = ("recall_rate", "latency", "bytes")
"""What may be held: the share of requests that recall, their mean seconds, their mean bytes."""
HIGHEST = {"threshold": 3.0, "relevance_threshold": 1.0}
"""Settings that may be steered, and the greatest value of each where none is given."""
SPAN = 48
"""Newest requests that are looked at."""
REPAID = 8
"""Requests in which what was missed is made good."""
BEGIN = 8
"""Requests before the threshold moves at all."""
MISSED = 0.1
"""Relative distance from the target, over `SPAN` requests at a bound, that is told of."""


class AdaptiveThresholdManager:
    """Moves a setting of a memory, so that its requests come to a target.

    Where memory is read follows from a request's score and the threshold: of `threshold` the score
    is the certainty of its search. So the threshold for a share of requests is the quantile of the
    newest scores, at the share that also makes good what was missed of late. A target in seconds or
    bytes is turned into a share by what requests cost that recall, and those that do not.

    Of `relevance_threshold`, below which blocks leave first, the score is the relevance of the best
    block that a request read, and it counts as one that recalls where it would if all below had
    left already. It needs a memory that scores relevance, and no request's seconds depend on it.

    Each row of a batch counts as a request. Those that had nothing to search are left out, as no
    threshold makes them recall. While it is used the setting is its own: another value that
    somebody sets holds for one request. May be used from several threads.

    Args:
        memory: the memory to steer; its present setting is where this begins.
        wanted: the share of requests that are to recall something, in (0, 1); seconds of a whole
            request, on the mean; or bytes that its layers read of memory, on the mean. Above 0.
        target: which of these `wanted` is: 'recall_rate', 'latency' or 'bytes'.
        setting: what is moved: 'threshold' or 'relevance_threshold'.
        low: the least value of it, 0 or more.
        high: the greatest, above `low`; None: as `HIGHEST` says.

    Attributes:
        seen: requests so far.
        recalled: how many of them recalled something.

    Raises:
        ConfigError: a value is out of its range, or the memory scores no relevance.

    Source: Angelopoulos, Candès and Tibshirani (2023), Conformal PID Control for Time Series
    Prediction: a forecast of the quantile from the newest scores, and the errors summed up.
    """

    def __init__(
        self,
        memory: Memory,
        wanted: float = 0.5,
        *,
        target: str = "recall_rate",
        setting: str = "threshold",
        low: float = 0.0,
        high: float | None = None,
    ) -> None:
        self._memory = memory
        self.target = check.choice("target", target, TARGETS)
        self.setting = check.choice("setting", setting, tuple(HIGHEST))
        self.low = check.real("low", low, 0.0)
        self.high = check.real("high", HIGHEST[setting] if high is None else high, 0.0)
        if self.high <= self.low:
            raise check.refuse("high", high, f"a number above low ({low})")
        if setting == "relevance_threshold":
            self._require_scores()
        self.wanted = self._checked(wanted)
        self.seen = self.recalled = 0
        self._updating = threading.Lock()
        renew(self, "_updating", threading.Lock)
        self._value = self.threshold
        self._scores = TrailingQuantile(SPAN)
        # What reads nothing costs no bytes, and of a share nothing.
        self._costs = MeanCost(self.wanted, SPAN, None if target == "latency" else 0.0)
        self._newest: deque[float] = deque(maxlen=SPAN)
        self._owed, self._off, self._told = 0.0, 0, False

    def _require_scores(self) -> None:
        if self.target == "latency":
            raise ConfigError(
                "target='latency': setting='threshold' expected, as what leaves first changes no "
                "request's seconds; got 'relevance_threshold'"
            )
        if self.high > 1:
            raise check.refuse("high", self.high, "a relevance, at most 1")
        if self._memory.config.memory.scoring is None:
            raise ConfigError(
                "setting='relevance_threshold': a memory that scores relevance expected "
                "(scoring_method, relevance_threshold or eviction_strategy), got one that does not"
            )

    def _checked(self, wanted: float) -> float:
        if self.target != "recall_rate":
            return check.positive("wanted", wanted)
        share = check.real("wanted", wanted, 0.0, 1.0)
        if not 0 < share < 1:
            raise check.refuse("wanted", wanted, "a share above 0 and below 1")
        return share

    def aim(self, wanted: float) -> None:
        """Another value of the target from now on; what is known of requests stays.

        `ConfigError`: it is out of its range; the former one holds then.
        """
        wanted = self._checked(wanted)
        with self._updating:
            self.wanted = self._costs.goal = wanted
            self._newest.clear()
            self._owed, self._off, self._told = 0.0, 0, False

    @property
    def threshold(self) -> float | None:
        """The value of the setting that holds now."""
        config = self._memory.config
        part = config.retrieval if self.setting == "threshold" else config.memory
        value: float | None = getattr(part, self.setting)
        return value

    def update(self, answers: Iterable[Answer]) -> float | None:
        """Take note of requests, in order; gives the value of the setting from now on."""
        with self._updating:
            before = self._value
            for answer in answers:
                score = answer.certainty if self.setting == "threshold" else answer.relevance
                if score is not None and answer.certainty:
                    self._note(answer, score, self.low if before is None else before)
            if len(self._scores) >= BEGIN:
                self._value = self._next()
            missed = self._missed()
        if self._value != self.threshold:
            self._change()
        if missed:
            warn(missed)
        return self.threshold

    def _note(self, answer: Answer, score: float, threshold: float) -> None:
        recalled = answer.recalled if self.setting == "threshold" else score >= threshold
        cost = {"recall_rate": 1.0, "latency": answer.seconds, "bytes": float(answer.nbytes)}
        spent = cost[self.target] if recalled or self.target == "latency" else 0.0
        self.seen += 1
        self.recalled += recalled
        self._scores.add(score)
        self._costs.add(spent, recalled)
        self._newest.append(spent)
        self._off = self._off + 1 if self._is_off() else 0
        gain = self._gain
        if gain is not None:
            # Clipped: what was missed for a long time is not made good for as long a time.
            owed = self._owed + (self.wanted - spent) / gain
            self._owed = min(max(owed, -REPAID), REPAID)

    @property
    def _gain(self) -> float | None:
        """By how much a request costs more that recalls; None: not known."""
        return 1.0 if self.target == "recall_rate" else self._costs.gain

    def _share(self) -> float:
        """Share of requests that is to recall, outside of [0, 1] where none would do."""
        return self.wanted if self.target == "recall_rate" else self._costs.share

    def _next(self) -> float:
        """The value from now on."""
        share = self._share()
        if not 0 < share < 1:  # all that can be done is to let none recall, or all
            return self.low if share >= 1 else self.high
        if self._gain is not None:
            share += self._owed / REPAID
        value = self._scores.at(min(max(share, 0.0), 1.0))
        return min(max(value, self.low), self.high)

    # -- whether it is held ----------------------------------------------------------------------

    def _is_off(self) -> bool:
        """Whether the newest requests missed the target, as far as there are enough of them."""
        if len(self._newest) < SPAN:
            return False
        # Two requests more or less are no miss, however small the target is.
        least = 2 * (self._gain or 0.0) / SPAN
        return abs(fmean(self._newest) - self.wanted) > max(MISSED * self.wanted, least)

    def _in_reach(self) -> bool:
        """Whether some value within the bounds gives the share that is to recall."""
        if self.target == "latency" and self._gain is None:
            return False
        return self._scores.share(self.high) <= self._share() <= self._scores.share(self.low)

    @property
    def held(self) -> bool | None:
        """Whether the target is held; None: too little is known, or it is on its way there."""
        if len(self._newest) < SPAN:
            return None
        if not self._is_off():
            return True
        # Off for long it is off for good, whatever the reason is.
        return None if self._in_reach() and self._off < 2 * SPAN else False

    def _missed(self) -> str | None:
        """What to warn of, once for each target."""
        if self._told or self.held is not False:
            return None
        self._told = True
        return (
            f"{self.target}={self.wanted:g} cannot be held by {self.setting} in "
            f"[{self.low:g}, {self.high:g}]: the newest {SPAN} requests came to "
            f"{fmean(self._newest):.4g} at {self._value:g}"
        )

    def _change(self) -> None:
        """Set the value, or what another thread has found to be wanted since."""
        # Not inside of `_updating`: whoever holds the memory's lock may be waiting for that.
        while True:
            value = self._value
            self._memory.change(**{self.setting: value})
            if self._value == value:
                return

    def stats(self) -> dict[str, Any]:
        """What it has seen, as plain data.

        Returns:
            `setting` and its `value`; `target` and how much of it is `wanted`; `requests` so far,
            `recalled`, their share; `newest`, what the newest requests came to on the mean; `held`,
            see there; `reachable`, the least and the greatest mean within the bounds, None: not
            known yet.
        """
        with self._updating:
            reachable = None
            ends = self._costs.idle, self._costs.busy
            if len(self._scores) and ends[0] is not None and ends[1] is not None:
                shares = self._scores.share(self.high), self._scores.share(self.low)
                reachable = [ends[0] + share * (ends[1] - ends[0]) for share in shares]
            return {
                "setting": self.setting,
                "value": self.threshold,
                "target": self.target,
                "wanted": self.wanted,
                "requests": self.seen,
                "recalled": self.recalled / self.seen if self.seen else None,
                "newest": fmean(self._newest) if self._newest else None,
                "held": self.held,
                "reachable": reachable,
            }
