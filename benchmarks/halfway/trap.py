"""An exception at one chosen point of a call: at a line, or at a call of something written in C."""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import transformers

import cmr

LIBRARY = str(Path(cmr.__file__).parent)
MODEL = str(Path(transformers.__file__).parent / "models")

KINDS = ("line", "before", "behind", "model")
"""Where it comes: at a line of the library; before a call that the library makes of anything that
is written in C (PyTorch, the system, a lock), or right behind it; before such a call of the model.
"""
ERRORS: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": lambda: KeyboardInterrupt("on purpose"),
    "MemoryError": lambda: MemoryError("on purpose"),
    "OSError": lambda: OSError(5, "on purpose"),
}
_EVENTS = {"before": "c_call", "behind": "c_return", "model": "c_call"}


class Place(NamedTuple):
    """A line of code, as people find it."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


class Trap:
    """Counts the points of a kind that a call comes by, and raises at one of them.

    Args:
        kind: one of `KINDS`.
        at: the point, from 1 on; None: nothing is raised.
        error: what is raised there; one of `ERRORS`.

    Attributes:
        places: of all points that were come by, where nothing is raised.
        hit: where it was raised; None: the call had fewer points.
    """

    def __init__(self, kind: str, at: int | None = None, error: str = "MemoryError") -> None:
        self.kind, self.at, self.error = kind, at, error
        self.places: list[Place] = []
        self.hit: Place | None = None
        self._count = 0
        self._watched: dict[Any, bool] = {}

    def run(self, call: Callable[[], Any]) -> Any:
        """Calls, with the trap set; raises what the call raises."""
        # A collection runs finalisers wherever it happens to come: points would not be the same.
        gc.disable()
        try:
            if self.kind == "line":
                sys.settrace(self._enter)
            else:
                sys.setprofile(self._profile)
            return call()
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            gc.enable()

    def _watches(self, frame: FrameType) -> bool:
        code = frame.f_code
        found = self._watched.get(code)
        if found is None:
            folder = MODEL if self.kind == "model" else LIBRARY
            found = self._watched[code] = code.co_filename.startswith(folder)
        return found

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if self._watches(frame) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not _leaves_with(frame):
            self._pass(frame)

        return self._line

    def _profile(self, frame: FrameType, event: str, function: Any) -> None:
        if event == _EVENTS[self.kind] and self._watches(frame):
            if function.__name__ == "__exit__" and event == "c_call":
                return  # see `_leaves_with`
            self._pass(frame)

    def _pass(self, frame: FrameType) -> None:
        self._count += 1
        if self.at is None:
            self.places.append(_place(frame))
        elif self._count == self.at:
            self.hit = _place(frame)
            # Python takes a trace function that raises away: nothing else is raised.
            raise ERRORS[self.error]()


def _leaves_with(frame: FrameType) -> bool:
    """Whether the next thing is the call that ends a `with`, after a body without an exception."""
    # Python raises nothing of its own between the end of the body and that call: it looks for
    # interrupts behind calls and where a function or another round of a loop begins.
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at : at + 6 : 2] == _NONES and code[at + 1] == code[at + 3] == code[at + 5]


_NONES = bytes([dis.opmap["LOAD_CONST"]] * 3)


def _place(frame: FrameType) -> Place:
    code = frame.f_code
    folder = MODEL if code.co_filename.startswith(MODEL) else str(Path(LIBRARY).parent)
    return Place(code.co_filename[len(folder) + 1 :], frame.f_lineno, code.co_qualname)
