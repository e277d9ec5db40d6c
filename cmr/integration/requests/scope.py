"""What callers say around their requests, and whether it is they who run now.

A `with` of ours is known by a context variable, so threads and tasks do not see each other's. Two
things a context variable does not tell. A generator shares the context of whoever drives it: while
it rests at a `yield`, its `with` still holds for all code around it, and two generators that take
turns would get each other's. And a generator that is driven piece by piece in other contexts, as
web frameworks do, loses what its `with` said. So the frames of generators and coroutines that have
a `with` open are noted beside the variable, and both must agree.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from cmr._frames import runs, user_frame
from cmr.errors import SessionError
from cmr.integration.requests.lock import Place, here

_RESTING = (
    inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)
"""Flags of code whose frames may rest in the middle while other code runs."""
REMEDY = (
    "the handle says it without any surrounding state: user = memory.session('name'), then "
    "user.generate(...), user.read(...)"
)

_CONTEXTLIB = contextlib.contextmanager.__code__.co_filename


@dataclass(frozen=True)
class Said:
    """What is said for the requests inside; None leaves it as it is said further out.

    Attributes:
        names: session names, one for all rows or one a row.
        create: whether sessions of these names are made where there are none.
        terms: of such sessions: whether they are ephemeral, and the seconds that they store for.
        settings: of the search, by name.
        about: the task of the requests, in a tuple of one; None: nothing is said of it.
        active: whether memory is read and written.
        caches: takes the caches that requests begin; their whole text is to become memory.
        bounded: whether such caches are bounded by the window.
        last: takes note of the last forward, see `LastForward`.
        request: that is under way; whatever else holds for it was said when it began.
    """

    names: tuple[str, ...] | None = None
    create: bool = False
    terms: tuple[bool | None, float | None] = (None, None)
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: tuple[str | None] | None = None
    active: bool | None = None
    caches: list[Any] | None = None
    bounded: bool = True
    last: Any = None
    request: Any = None


@dataclass(frozen=True, eq=False)
class Scope:
    """One `with` that is open, or one call under way.

    Attributes:
        owner: whose requests it is about.
        said: about them.
        opener: the object of the `with`.
        frame: of the generator or coroutine that the `with` stands in; None: of a function, which
            does not rest.
        place: thread and task that opened it.
        behind: what was open already.
        call: the frame of a call under way, without which there is none; None: of a `with`.
    """

    owner: object
    said: Said
    opener: object
    frame: FrameType | None
    place: Place
    behind: Scope | None
    call: FrameType | None = None


INNERMOST: ContextVar[Scope | None] = ContextVar("cmr_scope", default=None)
OPEN: dict[FrameType, list[Scope]] = {}
"""Scopes of frames that may rest, until they are left."""


class Opener:
    """A `with` that says something of the requests inside; errors call it by what is `shown`."""

    def __init__(self, owner: object, said: Said, shown: str) -> None:
        self._owner, self._said, self._shown = owner, said, shown

    def __repr__(self) -> str:
        return self._shown

    def __enter__(self) -> Any:
        # A `with` in a plain function cannot rest: there the context variable tells all.
        frame = _owner_of_with(sys._getframe(1))
        scope = Scope(self._owner, self._said, self, frame, here(), opened_last())
        if frame is not None:
            OPEN.setdefault(frame, []).append(scope)
        INNERMOST.set(scope)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the innermost scope of this object, in any case.

        Raises `SessionError` where one that was entered later is open, or it was entered in another
        context.
        """
        frame = _owner_of_with(sys._getframe(1))
        mine = next((s for s in reversed(OPEN.get(frame, [])) if s.opener is self), None)  # type: ignore[arg-type]
        if mine is not None:
            assert frame is not None
            OPEN[frame].remove(mine)
            if not OPEN[frame]:
                del OPEN[frame]
        scope, later = _close(lambda s: s is mine if mine else s.opener is self)
        if kind is not None:  # an exception on its way must not be replaced by another one
            return
        if scope is None and mine is None:
            raise SessionError(f"{self!r} is left in another context than it was entered in, where "
                               f"it still holds; {REMEDY}")  # fmt: skip
        if scope is None:  # a generator driven in other contexts: there was nothing to set back
            return
        # A `generate` under way says nothing by itself: it may go on.
        later = [kept for kept in later if kept.owner is scope.owner and kept.said.request is None]
        if later:
            raise SessionError(
                f"{self!r} is left while what was entered later, {_shown(later[0].opener)}, is "
                f"still open: generators or tasks that take turns cannot share a `with`; {REMEDY}"
            )


def _close(wanted: Callable[[Scope], bool]) -> tuple[Scope | None, list[Scope]]:
    """Take the innermost scope that is wanted out of the chain; those entered later stay in it.

    Gives the scope, None where there is none, and those entered later, innermost first.
    """
    later: list[Scope] = []
    scope = INNERMOST.get()
    while scope is not None and not wanted(scope):
        later.append(scope)
        scope = scope.behind
    if scope is None:
        return None, []
    rest = scope.behind
    for kept in reversed(later):
        rest = replace(kept, behind=rest)
        # The frames know the scopes, too: they must go on naming the one that is in the chain.
        if kept.frame is not None and kept.frame in OPEN:
            OPEN[kept.frame] = [rest if s is kept else s for s in OPEN[kept.frame]]
    INNERMOST.set(rest)
    return scope, later


@contextlib.contextmanager
def call(owner: object, said: Said) -> Iterator[None]:
    """What is said for the length of one call, which no other code can come between."""
    INNERMOST.set(Scope(owner, said, None, None, here(), opened_last(), user_frame()))
    try:
        yield
    finally:
        # Not by a token: what callbacks have entered meanwhile and keep open must stay.
        _close(lambda scope: scope.said is said)


def opened_last() -> Scope | None:
    """The scope that was opened last here; None: none is open."""
    # An interrupt may come where no `finally` of `call` sees it, and the call is over all the same.
    scope = INNERMOST.get()
    while scope is not None and not runs(scope.call) and scope.place == here():
        scope = scope.behind
        INNERMOST.set(scope)
    return scope


def innermost(owner: object) -> Scope | None:
    """The scope that was opened last here for an owner; None: none is open."""
    scope = opened_last()
    while scope is not None and scope.owner is not owner:
        scope = scope.behind
    return scope


def resting(owner: object) -> Scope | None:
    """A scope that names sessions in a generator that rests at a `yield`, in whatever context."""
    for scopes in list(OPEN.values()):
        for scope in scopes:
            if scope.owner is owner and scope.said.names is not None and _at_yield(scope.frame):
                return scope
    return None


def said_here(owner: object) -> list[Said]:
    """What holds for a request that begins now, from the outermost scope to the innermost.

    Raises `SessionError` where context and frames do not say the same, see `_agreed`.
    """
    scope = opened_last()
    known: list[Scope] = []
    while scope is not None:
        if scope.owner is owner and scope.said.request is None:
            known.append(scope)
        scope = scope.behind
    # Frames are looked at only where a generator or coroutine has a `with` open at all.
    if OPEN:
        known = _agreed(owner, known)
    return [scope.said for scope in reversed(known)]


def settings_of(said: list[Said]) -> dict[str, Any]:
    """The settings of the search that hold by what was said, the innermost before others."""
    return {name: value for part in said for name, value in part.settings.items()}


def _agreed(owner: object, known: list[Scope]) -> list[Scope]:
    """The scopes that hold, innermost first, as context and frames say.

    Raises `SessionError` where they do not say the same: a generator that rests has said it, or the
    running one said something else, and no call of a handle says whose request it is.
    """
    # By frames: the generators and coroutines that run now and have a `with` open, from the inside.
    running: list[FrameType] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame in OPEN:
            running.append(frame)
        frame = frame.f_back
    inside = [s for f in running for s in reversed(OPEN[f]) if s.owner is owner]
    # Lost are those that run here and that the context has lost; valid ones are no resting one's.
    lost = [scope for scope in inside if scope not in known]
    valid = [scope for scope in known if not _rests(scope, running)]
    if len(valid) == len(known) and not lost:
        return known
    who = next((scope for scope in known if scope.said.names is not None), None)
    inner = known if who is None else known[: known.index(who) + 1]
    doubtful = next((scope for scope in inner if scope not in valid), None)
    if doubtful is not None:  # what lies further out than who is named settles nothing
        frame = doubtful.frame
        assert frame is not None
        raise SessionError(
            f"{_shown(doubtful.opener)} was entered in {frame.f_code.co_name}(), which is not "
            f"what runs now: whose request this is cannot be told; {REMEDY}"
        )
    # A call of a handle names its session by itself, whatever is open around it.
    called = who is not None and who.opener is None
    if lost and valid and not called:
        raise SessionError(
            f"{_shown(lost[0].opener)} holds where this request is made, and its context says "
            f"{_shown(valid[0].opener)}: whose request this is cannot be told; {REMEDY}"
        )
    calls = [scope for scope in valid if scope.opener is None]
    return calls + inside + [s for s in valid if s not in calls and s not in inside]


def _rests(scope: Scope, running: list[FrameType]) -> bool:
    """Whether a scope is one of a generator or coroutine that other code runs beside."""
    # Where another thread or task runs than the one that opened it, a copy of the context was made,
    # which is how threads and tasks inherit: right from within, and wrong from a generator that
    # rests at a `yield` meanwhile.
    if scope.frame is None or scope.frame in running:
        return False
    return scope.place == here() or _at_yield(scope.frame)


def _at_yield(frame: FrameType | None) -> bool:
    """Whether a frame is one of a generator that rests. Coroutines rest at every `await`."""
    generator = frame is not None and frame.f_code.co_flags & inspect.CO_GENERATOR
    return bool(generator) and frame is not None and frame.f_back is None


def _owner_of_with(frame: FrameType | None) -> FrameType | None:
    """The resting frame that a `with` belongs to; None where it is a function's."""
    # Helpers that open it for somebody are passed over: `ExitStack`, and functions that
    # `contextlib.contextmanager` made a `with` of.
    while frame is not None:
        behind = frame.f_back
        helper = frame.f_code.co_flags & _RESTING and behind is not None and _is_helper(behind)
        if not helper and not _is_helper(frame):
            return frame if frame.f_code.co_flags & _RESTING else None
        frame = behind
    return None


def _is_helper(frame: FrameType) -> bool:
    return frame.f_code.co_filename == _CONTEXTLIB


def _shown(opener: object) -> str:
    return "a call under way" if opener is None else repr(opener)
