"""Which call something belongs to, and whether that call is still under way.

An interrupt may come in front of any `finally`, so what is held for the time of a call is not let
go there alone: who needs it next looks whether the call it belongs to still runs.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

LOOKS = 20
"""How often another thread's stack is looked at before a frame counts as gone."""


def runs(frame: FrameType | None, stack: FrameType | None = None) -> bool:
    """Whether a frame is one of those that run in a thread; None counts as one that does.

    `stack`: the innermost frame of the thread; None: of this one.
    """
    at: FrameType | None = stack or sys._getframe(1)
    while at is not None and frame is not None:
        if at is frame:
            return True
        at = at.f_back
    return frame is None


def runs_in(frame: int | None, thread: int, code: CodeType | None = None) -> bool:
    """The same in a thread, by its number, that goes on meanwhile; the frame by its `id`.

    One that is gone may leave its `id` to another: with `code` it must be one of that, too.
    """
    # It may leave frames while its stack is looked at: one look that finds the frame tells, one
    # that does not tells little.
    for _ in range(LOOKS):
        at = sys._current_frames().get(thread)
        if at is None:
            return False
        while at is not None:
            if frame is None or (frame == id(at) and code in (None, at.f_code)):
                return True
            at = at.f_back
    return False


def user_frame(*between: str) -> FrameType | None:
    """The frame of the function with the `with` statement that led here; files are passed over.

    Args:
        between: names of files whose functions are not meant, the caller's own for one.
    """
    # A generator's frame rests while whoever waits for its context runs: the one around it counts.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        passed = code.co_filename in between or code.co_filename == contextlib.__file__
        if not passed and not code.co_flags & inspect.CO_GENERATOR:
            return frame
        frame = frame.f_back
    return None


def codes_of(error: BaseException) -> Iterator[CodeType]:
    """The code of each function that an error came through, the innermost last."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code
        trace = trace.tb_next


def raised_at(error: BaseException) -> str:
    """File and line where an error was raised, without folders and without its message."""
    trace, where = error.__traceback__, "?"
    while trace is not None:
        name = Path(trace.tb_frame.f_code.co_filename).name
        where, trace = f"{name}:{trace.tb_lineno}", trace.tb_next
    return where
