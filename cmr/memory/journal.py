"""All or nothing: what a change has touched, as it was before, until the change is over.

A change is everything between entering and leaving `Journal.change`. Each step first notes what it
is about to overwrite, then overwrites it. Where the change is left by an exception, an interrupt or
a failed allocation too, the notes are taken back in reverse order; where it is left without one,
they are dropped in a single step, by which the change counts.

An exception may also come while notes are taken back, or just outside of any `try` of ours. Then
the journal stays open, and `recover` finishes: taking a note back twice does no harm. Who calls it
must know that no change is under way any more; see `Core.lock`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])
_MISSING = object()


class Journal:
    """An undo log that several objects share, whose changes are one.

    Attributes:
        undone: called after notes were taken back, to derive again what follows from them.
        settle: called when no change is under way any more, for what is to be done behind one.
    """

    def __init__(self) -> None:
        self._notes: list[Callable[[], object]] | None = None
        self.undone: list[Callable[[], None]] = []
        self.settle: list[Callable[[], None]] = []

    @property
    def open(self) -> bool:
        """Whether a change is under way, or was left half-way."""
        return self._notes is not None

    @contextmanager
    def change(self) -> Iterator[None]:
        """Everything inside happens, or nothing of it; a change inside another one is a part of it.

        An exception that leaves the inner one takes back the inner one alone.
        """
        outer = self._notes is None
        if outer:
            self._notes = []
        assert self._notes is not None
        mark = len(self._notes)
        try:
            yield
            if outer:
                self._notes = None  # from here on it has happened
        except BaseException:
            self._take_back(mark)
            if outer:
                self._notes = None
            raise
        finally:
            if outer and self._notes is None:
                self._settle()

    def recover(self) -> None:
        """Take back a change that was left half-way, and do what is to be done behind one."""
        if self._notes is not None:
            self._take_back(0)
            self._notes = None
        self._settle()

    # -- notes -----------------------------------------------------------------------------------

    def note(self, undo: Callable[[], object]) -> None:
        """Note how to take the next step back; it must do no harm where it is done twice."""
        if self._notes is not None:
            self._notes.append(undo)

    def rows(self, tensor: torch.Tensor, at: torch.Tensor) -> None:
        """Note rows of a tensor, `at` `[n]` int64 on its device."""
        if self._notes is not None and len(at):
            before = tensor[at]
            self.note(lambda: tensor.index_copy_(0, at, before))

    def whole(self, tensor: torch.Tensor) -> None:
        """Note all of a tensor."""
        if self._notes is not None:
            before = tensor.clone()
            self.note(lambda: tensor.copy_(before))

    def item(self, table: MutableMapping[Any, Any], *keys: Any) -> None:
        """Note what a table has under some keys, or that it has nothing there."""
        if self._notes is None:
            return
        before = [(key, table.get(key, _MISSING)) for key in keys]

        def undo() -> None:
            for key, value in before:
                if value is _MISSING:
                    table.pop(key, None)
                else:
                    table[key] = value

        self.note(undo)

    def attributes(self, owner: Any, *names: str) -> None:
        """Note attributes of an object that are replaced, never changed in place."""
        if self._notes is not None:
            before = {name: getattr(owner, name) for name in names}
            self.note(lambda: vars(owner).update(before))

    # -- inside ----------------------------------------------------------------------------------

    def _take_back(self, mark: int) -> None:
        notes = self._notes
        if notes is None or len(notes) == mark:
            return
        while len(notes) > mark:
            # Dropped when it is done: whoever is interrupted here begins with the same one again.
            notes[-1]()
            notes.pop()
        for derive in self.undone:
            derive()

    def _settle(self) -> None:
        for finish in self.settle:
            finish()


def all_or_nothing(method: F) -> F:
    """A method of an object with a `journal`: a change as a whole, or a part of one."""

    @functools.wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.journal.change():
            return method(self, *args, **kwargs)

    return inside  # type: ignore[return-value]
