"""Who asks next, and their passages brought near before they do."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from cmr._fork import renew
from cmr.config import checks as check
from cmr.errors import UnknownSessionError
from cmr.integration.memory import Memory


class MemoryPrefetcher:
    """Learns which sessions follow which, and lifts the expected ones out of lower tiers.

    What follows a session is counted over its last `span` requests. Nothing that a search finds
    changes by it; what was lifted is read from beside the model instead of being copied from
    host memory or run through the model again. May be used from several threads.

    Args:
        memory: whose sessions they are.
        ahead: sessions that are lifted at once, 1 or more.
        span: requests behind each session that are remembered, 1 or more.

    Attributes:
        lifted: times that a block went up a tier.
        expected: requests for sessions that had been predicted.
        seen: requests so far.

    Raises:
        ConfigError: a value is no positive integer.
    """

    def __init__(self, memory: Memory, ahead: int = 2, span: int = 32) -> None:
        self.ahead = check.integer("ahead", ahead, 1)
        self.span = check.integer("span", span, 1)
        self.lifted = self.expected = self.seen = 0
        self._memory = memory
        self._followers: dict[str, deque[str]] = {}
        self._last: tuple[str, ...] = ()
        self._predicted: tuple[str, ...] = ()
        self._noting = threading.Lock()
        renew(self, "_noting", threading.Lock)

    def note(self, sessions: Sequence[str]) -> None:
        """Take note of the sessions of a request, one name a row."""
        now = tuple(dict.fromkeys(sessions))
        with self._noting:
            for before in self._last:
                self._followers.setdefault(before, deque(maxlen=self.span)).extend(now)
            self.seen += len(now)
            self.expected += len(set(now) & set(self._predicted))
            self._last, self._predicted = now, ()

    def predict(self) -> list[str]:
        """Sessions that are expected next, the likeliest first; those that ended are not."""
        # Followers of sessions that ended would be kept for ever.
        alive = set(self._memory.sessions)
        votes: Counter[str] = Counter()
        with self._noting:
            for name in self._followers.keys() - alive:
                del self._followers[name]
            for before in self._last:
                # Newest first: of equally frequent ones the one that followed last is likelier.
                votes.update(name for name in reversed(self._followers.get(before, ())))
        likely = [name for name, _ in votes.most_common() if name in alive]
        return likely[: self.ahead]

    def prefetch(self, *sessions: str) -> int:
        """Lift sessions, or those that are expected; returns how many times a block went up.

        Raises:
            UnknownSessionError: a session that is named does not exist.
        """
        while True:
            wanted = list(sessions) or self.predict()
            try:
                risen = self._memory.lift(*reversed(wanted)) if wanted else 0
            except UnknownSessionError:
                # One that was predicted may have ended since; one that was named is the caller's.
                if sessions:
                    raise
                continue
            with self._noting:
                self._predicted = tuple(wanted)
                self.lifted += risen
            return risen

    def stats(self) -> dict[str, Any]:
        """`lifted` blocks, `requests` so far, and the share that was `expected`."""
        with self._noting:
            lifted, seen, expected = self.lifted, self.seen, self.expected
        return {"lifted": lifted, "requests": seen, "expected": expected / seen if seen else None}
