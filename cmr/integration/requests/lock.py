"""Whose turn it is: a lock that is handed on in the order in which it was asked for."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """A reentrant lock that goes to whoever has waited longest.

    `threading.Lock` goes to whoever is quickest: a thread that lets go and asks again at once, as a
    long read does between two windows, would keep all others waiting. Here letting go hands the
    lock to the first one in the queue, so asking again means waiting for one's turn.

    A context manager. An exception while waiting, an interrupt too, leaves the queue as if nobody
    had asked.
    """

    def __init__(self) -> None:
        self._inner = threading.Lock()  # held for a few instructions only
        self._owner: int | None = None
        self._depth = 0
        self._queue: deque[tuple[int, threading.Lock]] = deque()

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock.

        Args:
            timeout: seconds to wait at most, 0 or more; None: as long as it takes.

        Returns:
            Whether this thread holds the lock now.
        """
        me = threading.get_ident()
        if self._owner == me:
            self._depth += 1
            return True
        with self._inner:
            if self._owner is None:
                self._owner, self._depth = me, 1
                return True
            gate = threading.Lock()
            gate.acquire()
            waiting = me, gate
            self._queue.append(waiting)
        try:
            if gate.acquire(timeout=-1 if timeout is None else timeout):
                return True
        except BaseException:
            if self._give_up(waiting):
                self.release()
            raise
        return self._give_up(waiting)

    def release(self) -> None:
        """Let go once; the last time the first one in the queue gets the lock.

        Raises:
            RuntimeError: this thread does not hold it.
        """
        if not self.mine:
            raise RuntimeError("this thread does not hold the lock")
        if self._depth > 1:
            self._depth -= 1
            return
        with self._inner:
            if self._queue:
                self._owner, gate = self._queue.popleft()
                gate.release()
            else:
                self._owner, self._depth = None, 0

    @property
    def mine(self) -> bool:
        """Whether this thread holds the lock."""
        return self._owner == threading.get_ident()

    @property
    def waiting(self) -> int:
        """Threads in the queue."""
        return len(self._queue)

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _give_up(self, waiting: tuple[int, threading.Lock]) -> bool:
        """Leave the queue; whether the lock had been handed over by then."""
        with self._inner:
            if waiting in self._queue:
                self._queue.remove(waiting)
                return False
        return True
