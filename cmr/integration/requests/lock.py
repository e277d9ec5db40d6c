"""Whose turn it is: a lock that goes round in order, and forwards that hold it one at a time."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from cmr._fork import in_child
from cmr.errors import AttachError

Place = tuple[int, int]


def here() -> Place:
    """The thread and the task that run now."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), 0 if task is None else id(task)


class FairLock:
    """A reentrant lock that goes to whoever has waited longest.

    `threading.Lock` goes to whoever is quickest: a thread that lets go and asks again at once, as a
    long read does between two windows, would keep all others waiting. Here letting go hands the
    lock to the first one in the queue, so asking again means waiting for one's turn.

    A context manager. An exception while waiting, an interrupt too, leaves the queue as if nobody
    had asked.

    In the child of a fork nobody holds it, and nobody waits. Who takes it first there calls
    `begin_again`, again where that raises. AttachError where the thread that forked held it: what
    it was in the middle of is the parent's.
    """

    def __init__(self, begin_again: Callable[[], None] | None = None) -> None:
        self._inner = threading.Lock()  # held for a few instructions only
        self._owner: int | None = None
        self._depth = 0
        self._queue: deque[tuple[int, threading.Lock]] = deque()
        self._begin_again, self._forked, self._forked_inside = begin_again, False, False
        in_child(self, FairLock._leave_parent)

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock, `timeout` seconds at most; returns whether this thread holds it."""
        me = threading.get_ident()
        # Without `_inner`: nobody else can make this thread the owner, or take the lock from it.
        if self._owner == me:
            self._depth += 1
            return True
        if self._forked:
            self._require_unforked()
        taken = self._take(me, timeout)
        if taken and self._forked:
            self._first_in_child()
        return taken

    def _take(self, me: int, timeout: float | None) -> bool:
        with self._inner:
            if self._owner is None:
                self._owner, self._depth = me, 1
                return True
            # Each waits at a gate of its own, so that who lets go says who comes next.
            gate = threading.Lock()
            gate.acquire()
            waiting = me, gate
            self._queue.append(waiting)
        try:
            if gate.acquire(timeout=-1 if timeout is None else timeout):
                return True
        except BaseException:
            # The interrupt may have come just as the lock was handed over: then it is handed on.
            if self._give_up(waiting):
                self.release()
            raise
        return self._give_up(waiting)

    def release(self) -> None:
        """Let go once; the last time the first one in the queue gets the lock."""
        if not self.mine:
            self._require_unforked()
            raise RuntimeError("this thread does not hold the lock")
        if self._depth > 1:
            self._depth -= 1
            return
        with self._inner:
            if self._queue:
                # The owner changes hands while nobody is free to take it: no one can cut in.
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

    def _leave_parent(self) -> None:
        self._inner = threading.Lock()
        self._forked_inside |= self.mine
        self._owner, self._depth, self._forked = None, 0, True
        self._queue.clear()

    def _require_unforked(self) -> None:
        if self._forked_inside:
            raise AttachError(
                "this process was forked in the middle of a forward, or of something else that is "
                "done with this memory, by the thread that did it: fork between two of them"
            )

    def _first_in_child(self) -> None:
        try:
            if self._begin_again is not None:
                self._begin_again()
            self._forked = False
        except BaseException:
            self.release()
            raise

    def _give_up(self, waiting: tuple[int, threading.Lock]) -> bool:
        """Leave the queue; whether the lock had been handed over by then."""
        with self._inner:
            if waiting in self._queue:
                self._queue.remove(waiting)
                return False
        return True


@dataclass
class _Forward:
    """A forward that has begun and not ended.

    Attributes:
        frame: of the call of the decoder; None: not known, in a compiled one.
        outer: the step that it came into, where a hook of somebody's runs the model again.
    """

    frame: FrameType | None
    outer: Any


class _OfThread(threading.local):
    """The forwards under way in this thread, of each decoder; it names nobody."""

    def __init__(self) -> None:
        self.forwards: weakref.WeakKeyDictionary[Turns, list[_Forward]]
        self.forwards = weakref.WeakKeyDictionary()


_THREAD = _OfThread()


class Turns:
    """Holds a memory's lock from the beginning of each forward of a decoder to its end.

    `begin` stands in front of the decoder and `end` behind it, as hooks of PyTorch. Those run where
    a forward raises, too, but not where it is interrupted (`KeyboardInterrupt` and the like), so
    the decoder's own `forward` is wrapped for that. An interrupt that comes between the hook and
    the decoder is noticed by the thread's next forward: the frame of the one that is open does not
    run any more. `holder.core.lock` is the lock, and `holder.step` the step under way, which only
    whoever holds the lock may look at.
    """

    def __init__(self, holder: Any) -> None:
        self._holder = holder
        self._guard: Any = None
        self._users: Any = None

    def attach(self, decoder: Any, interrupted: Callable[[], None]) -> None:
        """Wrap the decoder's `forward`; `interrupted` is called in place of the hooks behind it."""
        own, self._users = decoder.forward, vars(decoder).get("forward")

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return own(*args, **kwargs)
            try:
                return own(*args, **kwargs)
            except Exception:  # the hooks run
                raise
            except BaseException:
                interrupted()
                raise

        self._guard = decoder.forward = forward

    def detach(self, decoder: Any) -> None:
        """Take the wrapper away, unless somebody has wrapped it in turn."""
        if vars(decoder).get("forward") is self._guard:
            del decoder.forward
            if self._users is not None:
                decoder.forward = self._users
        self._guard = self._users = None

    @property
    def under_way(self) -> bool:
        """Whether a forward is under way in this thread."""
        return bool(_THREAD.forwards.get(self))

    def begin(self) -> None:
        """Wait for one's turn; a forward begins, whose step is not known yet."""
        self._holder.core.lock.acquire()
        try:
            forwards = _THREAD.forwards.setdefault(self, [])
            # An interrupt may have come where neither hook nor wrapper could see it.
            while forwards and not _runs(forwards[-1].frame):
                self.end()
            # Whoever runs the model again inside a forward finds the outer step when it is over.
            outer = self._holder.step if forwards else None
            self._holder.step = None
            forwards.append(_Forward(_call_frame(), outer))
        except BaseException:  # an interrupt may come anywhere
            self._holder.core.lock.release()
            raise

    def end(self) -> None:
        """The innermost forward of this thread is over, however it ended; none: nothing is done."""
        forwards = _THREAD.forwards.get(self)
        if forwards:
            self._holder.step = forwards.pop().outer
            self._holder.core.lock.release()


def _call_frame() -> FrameType | None:
    """The frame of the call of the module whose hook runs now."""
    # Its frame lives from in front of the first hook until behind the last one, whatever is raised.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != nn.Module._call_impl.__name__:
        frame = frame.f_back
    return frame


def _runs(frame: FrameType | None) -> bool:
    """Whether a frame is one of those that run now in this thread."""
    at: FrameType | None = sys._getframe(1)
    while at is not None:
        if at is frame:
            return True
        at = at.f_back
    return False
