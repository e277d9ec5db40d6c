"""Who asks next, and their passages brought near before they do."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from cmr._fork import renew
from cmr.config import checks as check
from cmr.errors import UnknownSessionError
from cmr.integration.memory import Memory


class MemoryPrefetcher:
    """Learns which sessions follow which, and brings up what the expected ones may recall.

    What follows a session is counted over its last `span` requests. What is expected is lifted out
    of lower tiers (`Memory.lift`), and where a tier keeps token ids alone the passages next in the
    text to what was last recalled are run through the model ahead of the request
    (`Memory.prepare`). Nothing that a search finds changes by it. May be used from several threads.

    Args:
        memory: whose sessions they are.
        ahead: sessions that are brought up at once, 1 or more.
        span: requests behind each session that are remembered, 1 or more.
        passages: of each of them that are run through the model at most, 1 or more.

    Attributes:
        lifted: times that a block went up a tier.
        prepared: passages that were run through the model.
        expected: requests for sessions that had been predicted.
        seen: requests so far.

    Raises:
        ConfigError: a value is no positive integer.
    """

    def __init__(self, memory: Memory, ahead: int = 2, span: int = 32, passages: int = 32) -> None:
        self.ahead = check.integer("ahead", ahead, 1)
        self.span = check.integer("span", span, 1)
        self.passages = check.integer("passages", passages, 1)
        self.lifted = self.prepared = self.expected = self.seen = 0
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

    def prefetch(self, *sessions: str, between: Callable[[], object] | None = None) -> int:
        """Bring up sessions, or those that are expected; how many blocks and passages came.

        `between` is called in front of each block and passage, without the memory's lock: what
        waits there lets requests go first. With it, a newer request ends this, as others may be
        expected by then.

        Raises:
            UnknownSessionError: a session that is named does not exist.
        """
        begun = self.seen

        def goes_on() -> bool:
            return between is None or (between() is not False and self.seen == begun)

        while True:
            wanted = list(sessions) or self.predict()
            with self._noting:
                # Whoever asks before all of it is there was expected all the same.
                self._predicted = tuple(wanted)
            try:
                risen = run = 0
                if wanted:
                    risen = self._memory.lift(*reversed(wanted), between=goes_on)
                    run = self._memory.prepare(*wanted, passages=self.passages, between=goes_on)
            except UnknownSessionError:
                # One that was predicted may have ended since; one that was named is the caller's.
                if sessions:
                    raise
                continue
            with self._noting:
                self.lifted += risen
                self.prepared += run
            return risen + run

    def stats(self) -> dict[str, Any]:
        """What it has done, as plain data.

        Returns:
            `lifted` blocks, `prepared` passages, `requests` so far, and the share that was
            `expected`.
        """
        with self._noting:
            return {
                "lifted": self.lifted,
                "prepared": self.prepared,
                "requests": self.seen,
                "expected": self.expected / self.seen if self.seen else None,
            }
