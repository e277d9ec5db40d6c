"""What is done in the child of a fork, where only the thread that forked lives on.

Whoever holds what two processes must not share, or what a thread may have been in the middle of,
says so once; in the parent nothing is done. No work of PyTorch is done here: its threads are gone,
too, and a child that never uses a memory must not wait for them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from cmr._frames import runs_in

T = TypeVar("T")

_TOLD: WeakKeyDictionary[Any, list[Callable[[Any], object]]] = WeakKeyDictionary()
_PASSING: dict[object, tuple[int, Callable[[], object]]] = {}
_OPEN: dict[int, tuple[int, int | None, CodeType | None]] = {}


def in_child(owner: T, act: Callable[[T], object]) -> None:
    """Have `act(owner)` called in the child of every fork; `owner` is not kept alive by it."""
    _TOLD.setdefault(owner, []).append(act)


def renew(owner: object, name: str, make: Callable[[], Any]) -> None:
    """Give an object a new part there, such as a lock that a thread of the parent may hold."""
    in_child(owner, lambda it: setattr(it, name, make()))


@contextmanager
def passing(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` in a child that another thread forks meanwhile: who is inside never leaves there.

    For what one thread changes for a while and all see, as hooks on a model.
    """
    key = object()
    _PASSING[key] = threading.get_ident(), undo
    try:
        yield
    finally:
        del _PASSING[key]


def own(fd: int, frame: FrameType | None = None) -> int:
    """Keep a descriptor to this process, which closes it with `close`; returns it.

    A lock on an open file belongs to all processes that have it open: a child that lives on would
    keep a folder busy for ever. `frame`: of the call that it is kept for; None: until it is closed.
    """
    # Not the frame itself, which would keep all that was at hand in it.
    where = (None, None) if frame is None else (id(frame), frame.f_code)
    _OPEN[fd] = threading.get_ident(), *where
    return fd


def close_lost() -> None:
    """Close what was kept for calls that have ended without: an interrupt came in front of it."""
    for fd, (thread, frame, code) in list(_OPEN.items()):
        if frame is not None and not runs_in(frame, thread, code):
            close(fd)


def close(fd: int) -> None:
    """Close a descriptor of `own`, unless it was closed as that of a parent."""
    if fd in _OPEN:
        del _OPEN[fd]
        os.close(fd)


def _begin() -> None:
    for owner, acts in list(_TOLD.items()):
        for act in acts:
            with suppress(OSError):  # what was not possible is done at the first use, or refused
                act(owner)
    me = threading.get_ident()
    for key, (thread, undo) in reversed(list(_PASSING.items())):
        if thread != me:
            del _PASSING[key]
            undo()
    while _OPEN:
        with suppress(OSError):
            os.close(_OPEN.popitem()[0])


if hasattr(os, "register_at_fork"):  # elsewhere nobody forks
    os.register_at_fork(after_in_child=_begin)
