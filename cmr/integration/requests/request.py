"""A request: what one `generate`, forward or `read` is told, and keeps until it ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from cmr.errors import SessionError
from cmr.integration.requests.lock import Place, here
from cmr.integration.requests.scope import (
    INNERMOST,
    OPEN,
    REMEDY,
    Said,
    call,
    innermost,
    resting,
    said_here,
    settings_of,
)

if TYPE_CHECKING:
    from cmr.integration.capture.window_record import WindowRecord
    from cmr.integration.core import Core
    from cmr.integration.hooks.prompts import Prompt
    from cmr.integration.hooks.step import Step
    from cmr.memory.sessions import SessionTable
    from cmr.retrieval import Retriever


@dataclass(eq=False)
class Request:
    """One request of somebody, whatever anybody else does meanwhile.

    It is made at the outermost `generate`, forward or `read`, held by the context that runs it and
    by the record of its cache, and by nothing that others share.

    Attributes:
        names: session names as the caller gave them; None: row i is session `str(i)`.
        retriever: the search, with the settings that hold for it.
        task: what it is about; None: not said.
        active: whether it reads and writes memory.
        inputs: rows of the inputs of a `generate`; None: it is none.
        records: of the caches that it began.
        part: most tokens of a long prompt that one forward runs; None: as the window allows.
        recalls: False while the beginning of a long prompt is fed through the window.
        caches: takes the caches that it begins, whose whole text is to become memory; None: none.
        kept: likewise of a `generate` that is remembered when it ends.
        prompt: what that `generate` was given; None: no token ids, or it is none.
        bounded: whether such caches are bounded by the window.
        last: also takes note of its last forward, for a handle; None: nobody asks.
    """

    names: tuple[str, ...] | None
    retriever: Retriever
    task: str | None
    active: bool
    inputs: int | None = None
    records: WeakSet[WindowRecord] = field(default_factory=WeakSet)
    part: int | None = None
    recalls: bool = True
    caches: list[Any] | None = None
    kept: list[Any] | None = None
    prompt: Prompt | None = None
    bounded: bool = True
    last: LastForward | None = None

    def row_names(self, batch: int) -> list[str]:
        """The session name of each row; raises `ValueError` where as many were not named."""
        if self.names is None:
            return [str(row) for row in range(batch)]
        if len(self.names) == 1:
            return [self.names[0]] * batch
        if len(self.names) != batch:
            raise ValueError(f"{len(self.names)} session names for a batch of {batch} rows")
        return list(self.names)

    def rows(
        self, table: SessionTable, batch: int, create: bool = False
    ) -> tuple[list[int], list[int]]:
        """Session number of each row of a forward, and the rows that write."""
        # Beams and several returned sequences come as groups of rows of one input: they share its
        # session, and the first of each group writes. Rows without a name make their sessions when
        # they first write; a session that was named and has ended is `NO_SESSION` and stays so.
        inputs = self.inputs if self.inputs and batch % self.inputs == 0 else batch
        group = batch // inputs
        names, making = self.row_names(inputs), create and self.names is None
        if making:  # none is made where there is no room for all of them
            table.check_room(names)
        get = table.create if making else table.find
        numbers = [get(name) for name in names]
        return [n for n in numbers for _ in range(group)], list(range(0, batch, group))


def current(core: Core) -> Request | None:
    """The request whose `generate` is under way here; None outside of any."""
    # None, too, where something else has been said since it began: what calls the model from within
    # (a streamer, a stopping criterion) may do so for somebody else.
    if INNERMOST.get() is None:
        return None
    scope = innermost(core)
    request: Request | None = None if scope is None else scope.said.request
    return request


def under_way(core: Core, request: Request) -> AbstractContextManager[None]:
    """Forwards inside belong to a request."""
    return call(core, Said(request=request))


def new_request(core: Core, named: bool = False) -> Request:
    """A request as it is said here and now; `named`: the call itself names its sessions.

    Raises `SessionError` where nobody said whose it is and that is refused or cannot be told, and
    `UnknownSessionError` where a session that is named has ended.
    """
    # Most forwards of a loop of one's own stand in no `with`: nothing has to be looked up then.
    said = said_here(core) if INNERMOST.get() is not None or OPEN else []
    who = _nearest(said, "names")
    active = _nearest(said, "active")
    following = _nearest(said, "caches") or Said()
    on = core.active if active is None else active.active
    if on and not named:
        if who is not None:
            core.require(who)
        else:
            _require_named(core)
    about, last = _nearest(said, "about"), _nearest(said, "last")
    return Request(
        names=None if who is None else who.names,
        retriever=core.retriever_with(settings_of(said)) if said else core.standing_retriever,
        task=None if about is None or about.about is None else about.about[0],
        active=bool(on),
        caches=following.caches,
        bounded=following.bounded,
        last=None if last is None else last.last,
    )


def _nearest(said: Sequence[Said], name: str) -> Said | None:
    """The innermost of those that say something of `name`."""
    return next((part for part in reversed(said) if getattr(part, name) is not None), None)


def within(core: Core, inputs: int | None) -> Request:
    """The request of a `generate` with so many inputs: new, or part of one that is under way."""
    outer = current(core)
    begun = new_request(core) if outer is None else outer
    # A copy, as a `generate` inside of another has inputs and caches of its own.
    return replace(begun, inputs=inputs, records=WeakSet(), kept=None, prompt=None)


def _require_named(core: Core) -> None:
    """Raises `SessionError` for a request without a session where there must be one."""
    if core.config.unnamed == "refuse":
        raise SessionError(f"a request without a session, and unnamed='refuse'; {REMEDY}")
    scope = resting(core) if OPEN else None
    if scope is not None:
        raise SessionError(
            f"a request without a session, while a generator that entered {scope.opener!r} rests: "
            "it may be meant for this one (a framework that runs it in a context of its own takes "
            f"the `with` along); {REMEDY}"
        )
    # A thread does not inherit the context of who starts it. Where others have names, a request
    # without one is more likely to have lost its `with` than to be meant for session '0'.
    if core.names_in_use and threading.get_ident() != core.home:
        raise SessionError(
            "a request without a session in a thread of its own, while others name theirs: threads "
            f"do not take over the `with memory.session(...)` of whoever starts them; {REMEDY}"
        )


class LastForward:
    """The last forward of a thread or task, or of a handle, until something of it is forgotten."""

    def __init__(self) -> None:
        self.step: Step | None = None


@dataclass(eq=False)
class _Lasts:
    """The last forwards of a place, one of each memory."""

    place: Place
    cells: WeakKeyDictionary[Core, LastForward] = field(default_factory=WeakKeyDictionary)


_LASTS: ContextVar[_Lasts | None] = ContextVar("cmr_lasts", default=None)


def note_last(core: Core, step: Step) -> None:
    """Take note of a forward, for whoever asks in this thread or task what was recalled."""
    place, lasts = here(), _LASTS.get()
    # A copied context brings along the cells of the thread or task that it was copied from.
    if lasts is None or lasts.place != place:
        lasts = _Lasts(place)
        _LASTS.set(lasts)
    cell = lasts.cells.get(core)
    if cell is None:
        cell = lasts.cells[core] = LastForward()
    for noted in (cell, step.told):
        if noted is not None:
            noted.step = step
            core.lasts.add(noted)


def last_here(core: Core) -> Step | None:
    """The last forward of this thread or task; None where there was none."""
    lasts = _LASTS.get()
    if lasts is None or lasts.place != here():
        return None
    cell = lasts.cells.get(core)
    return None if cell is None else cell.step
