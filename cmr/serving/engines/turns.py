"""Whose turn it is: a bounded queue in which each session has one turn at a time, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from cmr.serving.engines.ticket import Ticket
from cmr.serving.refusals import Refusal

GATHERS = 5
"""Times `gather` that a batch waits in all while others come."""


class _Alone:
    """Somebody who waits to have some sessions alone."""

    def __init__(self, sessions: tuple[str, ...]) -> None:
        self.sessions, self.granted = sessions, False


class Turns:
    """The queue of an engine. Who came first is first, but for sessions that somebody has.

    `most`: how many may wait. `here`: whether a session can be had; who wants one that cannot waits
    until `look` is called. The sessions of those that were taken are theirs until `done`.
    """

    def __init__(self, most: int, here: Callable[[str], bool] = lambda _: True) -> None:
        self._most, self._here, self._changed = most, here, threading.Condition()
        # One lane gathers at a time, or two would share what one batch could take.
        self._gathering = threading.Lock()
        self._waiting: list[Ticket | _Alone] = []
        self._taken: set[Ticket | _Alone] = set()
        self._answered: set[Ticket | _Alone] = set()
        self._closed = False
        # What a batch took lately, in seconds: by that a client knows when to come again.
        self._usual = 1.0

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs wait, and how many are taken."""
        with self._changed:
            counts = [sum(isinstance(one, Ticket) for one in ones)
                      for ones in (self._waiting, self._taken)]  # fmt: skip
        return counts[0], counts[1]

    def put(self, one: Ticket | _Alone) -> None:
        """Put somebody last in the queue; raises `Refusal` where it is full or closed."""
        with self._changed:
            if self._closed:
                raise Refusal(503, "closing", "the server is about to end", 5)
            if len(self._waiting) >= self._most:
                raise Refusal(429, "queue_full", f"{self._most} requests wait already",
                              max(1, min(60, round(self._usual))))  # fmt: skip
            self._waiting.append(one)
            self._grant()
            self._changed.notify_all()

    def look(self) -> None:
        """Look again which sessions can be had."""
        with self._changed:
            self._grant()
            self._changed.notify_all()

    def drop(self, one: Ticket | _Alone) -> None:
        """Take somebody out who waits still; nothing where the turn has come."""
        with self._changed:
            if one in self._waiting:
                self._waiting.remove(one)
                self._grant()
                self._changed.notify_all()

    def take(
        self, fits: Callable[[list[Ticket], Ticket], bool], most: int, gather: float
    ) -> list[Ticket]:
        """The next batch: those first in the queue that fit together; [] when all is closed.

        `fits` says whether one more goes with some. Waits until there is one, and then for others:
        until none has come for `gather` seconds, or `GATHERS` times as long in all.
        """
        with self._gathering, self._changed:
            while not (self._closed and not self._waiting and not self._taken):
                if not self._fitting(fits, most):
                    self._changed.wait()
                    continue
                self._gather(fits, most, gather)
                # Those there may have gone meanwhile; then it is looked again.
                if found := self._fitting(fits, most):
                    self._waiting = [one for one in self._waiting if one not in found]
                    self._taken.update(found)
                    return found
            return []

    def answered(self, one: Ticket) -> None:
        """The next job of its session may be taken, while others of its batch go on."""
        with self._changed:
            self._answered.add(one)
            self._changed.notify_all()

    def done(self, taken: Collection[Ticket | _Alone], seconds: float | None = None) -> None:
        """The turn of some is over; `seconds` is what their batch took."""
        with self._changed:
            self._taken.difference_update(taken)
            self._answered.difference_update(taken)
            if seconds is not None:
                self._usual += 0.3 * (seconds - self._usual)
            self._grant()
            self._changed.notify_all()

    @contextmanager
    def alone(self, *sessions: str, seconds: float) -> Iterator[None]:
        """In turn with the jobs of these sessions; see `Engine.alone`."""
        one = _Alone(sessions)
        self.put(one)
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: one.granted, seconds):
                    raise Refusal(503, "busy", "requests of this session are being answered", 5)
            yield
        finally:
            self.drop(one)
            self.done([one])

    def close(self, seconds: float) -> list[Ticket]:
        """Let nobody in any more; those left after so many seconds, waiting and taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._taken, seconds)
            return [one for one in (*self._waiting, *self._taken) if isinstance(one, Ticket)]

    # -- with the lock held ----------------------------------------------------------------------

    def _free(self) -> Iterator[Ticket | _Alone]:
        """Those in the queue whose sessions nobody has and nobody in front of them waits for."""
        held = {session for one in self._taken for session in one.sessions}
        had = {session for one in self._taken - self._answered for session in one.sessions}
        for one in self._waiting:
            # A row that is over is part of its batch still: its session is not to end under it.
            busy = had if isinstance(one, Ticket) else held
            if busy.isdisjoint(one.sessions) and all([self._here(name) for name in one.sessions]):
                yield one
            for sessions in (had, held):
                sessions.update(one.sessions)

    def _gather(
        self, fits: Callable[[list[Ticket], Ticket], bool], most: int, gather: float
    ) -> None:
        """Wait for those who come one after the other, as clients that ask at once do."""
        came, last = 0, time.monotonic() + GATHERS * gather
        while came < (found := len(self._fitting(fits, most))) < most:
            came, until = found, min(last, time.monotonic() + gather)
            while (left := until - time.monotonic()) > 0 and self._changed.wait(left):
                if len(self._fitting(fits, most)) != came:
                    break

    def _grant(self) -> None:
        for one in [one for one in self._free() if isinstance(one, _Alone)]:
            self._waiting.remove(one)
            self._taken.add(one)
            one.granted = True

    def _fitting(self, fits: Callable[[list[Ticket], Ticket], bool], most: int) -> list[Ticket]:
        found: list[Ticket] = []
        for one in self._free():
            if isinstance(one, Ticket) and len(found) < most and (not found or fits(found, one)):
                found.append(one)
        return found
