"""Forwards take turns: one at a time, and whatever ends one lets the next one begin.

`begin` stands in front of the decoder and `end` behind it, as hooks of PyTorch. Those run where a
forward raises, too, but not where it is interrupted (`KeyboardInterrupt` and the like), so the
decoder's own `forward` is wrapped for that. An interrupt that comes between the hook and the
decoder is noticed by the thread's next forward: the frame of the one that is open does not run any
more.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from cmr.integration.core import Core
from cmr.integration.hooks.step import Step


@dataclass
class _Forward:
    """One that has begun and not ended.

    Attributes:
        frame: of the call of the decoder; None: not known, in a compiled one.
        outer: the step that it came into, where a hook of somebody's runs the model again.
    """

    frame: FrameType | None
    outer: Step | None


class _Here(threading.local):
    """The forwards under way in this thread, of each decoder; it names nobody."""

    def __init__(self) -> None:
        self.forwards: weakref.WeakKeyDictionary[Turns, list[_Forward]]
        self.forwards = weakref.WeakKeyDictionary()


_HERE = _Here()


class Turns:
    """Holds a memory's lock from the beginning of each forward of a decoder to its end.

    Args:
        core: whose lock it is.
        holder: has the step under way, `step`, which whoever holds the lock alone may look at.
    """

    def __init__(self, core: Core, holder: Any) -> None:
        self._core, self._holder = core, holder
        self._guard: Any = None
        self._users: Any = None

    def attach(self, decoder: Any, interrupted: Callable[[], None]) -> None:
        """Wrap the decoder's `forward`.

        Args:
            decoder: the decoder.
            interrupted: called where it is interrupted, in place of the hooks behind it.
        """
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
        return bool(_HERE.forwards.get(self))

    def begin(self) -> None:
        """Wait for one's turn; a forward begins, whose step is not known yet."""
        self._core.lock.acquire()
        try:
            forwards = _HERE.forwards.setdefault(self, [])
            while forwards and not _runs(forwards[-1].frame):
                self.end()
            outer = self._holder.step if forwards else None
            self._holder.step = None
            forwards.append(_Forward(_call_frame(), outer))
        except BaseException:  # an interrupt may come anywhere
            self._core.lock.release()
            raise

    def end(self) -> None:
        """The innermost forward of this thread is over, however it ended; none: nothing is done."""
        forwards = _HERE.forwards.get(self)
        if forwards:
            self._holder.step = forwards.pop().outer
            self._core.lock.release()


def _call_frame() -> FrameType | None:
    """The frame of the call of the module whose hook runs now."""
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
