"""Whose turn it is: a lock that goes round in order, and forwards that hold it one at a time."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from cmr._fork import in_child
from cmr._frames import runs, runs_in, user_frame
from cmr.errors import AttachError
from cmr.integration.decoder.wrapped import Wrapped

Place = tuple[int, int]

LOST = 1.0
"""Seconds after which who waits looks whether the lock was lost."""


def here() -> Place:
    """The thread and the task that run now."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), 0 if task is None else id(task)


class Hold:
    """One time that a thread took a lock and did not let go yet.

    Attributes:
        frame: while it runs the lock is held; None: until it is let go.
        after: called when the lock is let go, or was lost; it must do no harm when called twice.
    """

    __slots__ = ("after", "frame")

    def __init__(self, frame: FrameType | None) -> None:
        self.frame = frame
        self.after: Callable[[], None] | None = None

    def end(self) -> None:
        """What was set for the time of holding it is put back."""
        if self.after is not None:
            self.after()


class FairLock:
    """A reentrant lock that goes to whoever has waited longest.

    `threading.Lock` goes to whoever is quickest: a thread that lets go and asks again at once, as a
    long read does between two windows, would keep all others waiting. Here letting go hands the
    lock to the first one in the queue, so asking again means waiting for one's turn.

    A context manager, which gives its `Hold`. An exception while waiting, an interrupt too, leaves
    the queue as if nobody had asked. An interrupt may also come where no `finally` sees it, at the
    first instruction of the one that would let go. So each hold knows the frame that it belongs to,
    that of the function with the `with` statement: when that does not run any more, the lock is
    lost, which the thread's own next call notices, and others that wait do within a second.
    In the child of a fork nobody holds it. AttachError there where the thread that forked held it:
    what it was in the middle of is the parent's.

    Args:
        taken: called by whoever takes the lock that nobody held, before anything else is done.
    """

    def __init__(self, taken: Callable[[], None] | None = None) -> None:
        self._inner = threading.Lock()  # held for a few instructions only
        self._taken = taken
        self._owner: int | None = None
        self._holds: list[Hold] = []
        self._queue: deque[_Waiting] = deque()
        self._forked_inside = False
        in_child(self, FairLock._leave_parent)

    def acquire(self, timeout: float | None = None, frame: FrameType | None = None) -> bool:
        """Wait for the lock, `timeout` seconds at most; returns whether this thread holds it.

        `frame`: what the hold belongs to; None: the caller's.
        """
        me, hold = threading.get_ident(), Hold(frame or user_frame(__file__))
        # Without `_inner`: nobody else takes the lock from a thread whose hold is not lost.
        if self._owner == me and self._holds and runs(self._holds[-1].frame):
            self._holds.append(hold)
            return True
        self._require_unforked()
        if not self._wait(me, hold, timeout):
            return False
        try:
            # Those that were lost, of this thread or of another one that had the lock.
            for lost in [h for h in reversed(self._holds) if h is not hold and not runs(h.frame)]:
                lost.end()
                self._holds.remove(lost)
            if len(self._holds) == 1 and self._taken is not None:
                self._taken()
        except BaseException:
            self.release(hold.frame)
            raise
        return True

    def _wait(self, me: int, hold: Hold, timeout: float | None) -> bool:
        with self._inner:
            if self._owner in (None, me):
                self._owner = me
                self._holds.append(hold)
                return True
            # Each waits at a gate of its own, so that who lets go says who comes next.
            gate = threading.Lock()
            gate.acquire()
            waiting = _Waiting(me, gate, hold)
            self._queue.append(waiting)
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while not gate.acquire(timeout=LOST if end is None else min(LOST, _left(end))):
                self._take_from_lost(waiting)
                if end is not None and not _left(end) and not self._give_up(waiting):
                    return False
            return True
        except BaseException:
            # The interrupt may have come just as the lock was handed over: then it is handed on.
            if self._give_up(waiting):
                self.release(hold.frame)
            raise

    def release(self, frame: FrameType | None = None) -> None:
        """Let go once; the last time the first one in the queue gets the lock.

        `frame`: as for `acquire`.
        """
        if not self.mine:
            self._require_unforked()
            raise RuntimeError("this thread does not hold the lock")
        over = [hold for hold in self._holds if not runs(hold.frame)]
        # Where something was lost it may have been this very hold: it is not let go twice.
        left = [hold for hold in self._holds if hold not in over]
        if left and (not over or left[-1].frame is (frame or user_frame(__file__))):
            over.insert(0, left[-1])
        for hold in reversed(over):
            hold.end()
        with self._inner:
            if self.mine:  # else others have noticed that it was lost
                self._holds = [hold for hold in self._holds if hold not in over]
                self._hand_on()

    def _hand_on(self) -> None:
        """Give the lock to the first in the queue, where nobody holds it; inside `_inner`."""
        if self._holds:
            return
        # The owner changes hands while nobody is free to take it: no one can cut in.
        self._owner = None
        if self._queue:
            first = self._queue.popleft()
            self._owner = first.thread
            self._holds.append(first.hold)
            first.gate.release()

    @property
    def mine(self) -> bool:
        """Whether this thread holds the lock."""
        return self._owner == threading.get_ident()

    @property
    def wanted(self) -> bool:
        """Whether a thread holds the lock, or waits for it."""
        return self._owner is not None or bool(self._queue)

    @property
    def held(self) -> Hold:
        """The innermost hold of the thread that holds the lock."""
        return self._holds[-1]

    @property
    def waiting(self) -> int:
        """Threads in the queue."""
        return len(self._queue)

    def __enter__(self) -> Hold:
        self.acquire(frame=user_frame(__file__))
        return self._holds[-1]

    def __exit__(self, *_: object) -> None:
        self.release(user_frame(__file__))

    def _leave_parent(self) -> None:
        """In the child of a fork: nobody holds it, and of those that wait one thread at most."""
        me = threading.get_ident()
        self._inner = threading.Lock()
        self._queue = deque(waiting for waiting in self._queue if waiting.thread == me)
        self._forked_inside = self.mine and any(runs(hold.frame) for hold in self._holds)
        while self._holds:
            self._holds.pop().end()
        self._hand_on()

    def _require_unforked(self) -> None:
        if self._forked_inside:
            raise AttachError(
                "this process was forked in the middle of a forward, or of something else that is "
                "done with this memory, by the thread that did it: fork between two of them"
            )

    def _give_up(self, waiting: _Waiting) -> bool:
        """Leave the queue; whether the lock had been handed over by then."""
        with self._inner:
            if waiting in self._queue:
                self._queue.remove(waiting)
                return False
        return True

    def _take_from_lost(self, waiting: _Waiting) -> None:
        """Give the lock to one that waits, where its owner has lost it, or is gone itself."""
        with self._inner:
            if waiting in self._queue and self._owner is not None and not self._held_anywhere():
                self._queue.remove(waiting)
                self._owner = waiting.thread
                # Those that were lost stay until the new owner has ended them.
                self._holds.append(waiting.hold)
                waiting.gate.release()

    def _held_anywhere(self) -> bool:
        frames = [None if hold.frame is None else id(hold.frame) for hold in self._holds]
        return any(runs_in(frame, self._owner or 0) for frame in frames)


class _Waiting(NamedTuple):
    """Who waits, the gate that is opened for it, and what it will hold the lock by."""

    thread: int
    gate: threading.Lock
    hold: Hold


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
        self._guard: Wrapped | None = None

    def attach(
        self, decoder: Any, interrupted: Callable[[], None], again: Callable[[Exception], bool]
    ) -> None:
        """Wrap the decoder's `forward`; `interrupted` is called in place of the hooks behind it.

        `again` says of an error in it whether it is to run once more.
        """

        def guarded(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return own(*args, **kwargs)
            while True:
                try:
                    return own(*args, **kwargs)
                except Exception as error:
                    if not again(error):  # the hooks run
                        raise
                except BaseException:
                    interrupted()
                    raise

        self._guard = Wrapped(decoder, "forward", guarded)

    def detach(self) -> None:
        """Take the wrapper away, unless somebody has wrapped it in turn."""
        if self._guard is not None:
            self._guard.take_away()
            self._guard = None

    @property
    def under_way(self) -> bool:
        """Whether a forward is under way in this thread."""
        return bool(_THREAD.forwards.get(self))

    def begin(self) -> None:
        """Wait for one's turn; a forward begins, whose step is not known yet."""
        lock, frame = self._holder.core.lock, _call_frame()
        forwards = _THREAD.forwards.setdefault(self, [])
        # Of a compiled one no frame is known: it has ended when this thread begins another.
        while forwards and forwards[-1].frame is None:
            self.end()
        lock.acquire(frame=frame)
        hold = lock.held
        try:
            # Whoever runs the model again inside a forward finds the outer step when it is over.
            begun = _Forward(frame, self._holder.step if forwards else None)
            hold.after = functools.partial(self._over, forwards, begun)
            self._holder.step = None
            forwards.append(begun)
        except BaseException:  # an interrupt may come anywhere
            lock.release(frame)
            raise

    def end(self) -> None:
        """The innermost forward of this thread is over, however it ended; none: nothing is done."""
        forwards = _THREAD.forwards.get(self)
        if forwards:
            self._holder.core.lock.release(forwards[-1].frame)

    def _over(self, forwards: list[_Forward], begun: _Forward) -> None:
        if begun in forwards:
            forwards.remove(begun)
        self._holder.step = begun.outer


def _call_frame() -> FrameType | None:
    """The frame of the call of the module whose hook runs now."""
    # Its frame lives from in front of the first hook until behind the last one, whatever is raised.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != nn.Module._call_impl.__name__:
        frame = frame.f_back
    return frame


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
