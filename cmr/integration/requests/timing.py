"""How long the stages of requests take, told to whoever watches; nothing is measured for nobody.

Seconds are those of the host's clock: what a GPU still has under way when a stage ends is in a
later one, and in the whole of the forward once something waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from cmr.integration.requests.watched import Watched

_NOBODY: AbstractContextManager[None] = nullcontext()


class Took(NamedTuple):
    """Something that a request did.

    Attributes:
        stage: 'call', a request as a whole, a `generate` or a prompt outside of one; 'prompt' and
            'token', forwards of several tokens and of one; inside of these 'search', 'read' (what
            was found is fetched), 'reweave' (layers attend to it) and 'store'; 'found', of no
            seconds, a search that gave layers something to read; 'left_out', which failed.
        seconds: of the host.
        tokens: that went through the model, padding included; 0 for stages inside of a forward.
        error: of what was left out the stage and the error's name, 'raised' of a call or forward
            that raised; '' where nothing was wrong.
    """

    stage: str
    seconds: float
    tokens: int = 0
    error: str = ""


class Timing(Watched[Took]):
    """Adds up the stages of a forward and tells them when it is over.

    All but `watch` and `call` runs while the memory's lock is held, so one forward is open at most.
    """

    who = "who watches a memory"

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, float] | None = None
        self._began = 0.0

    def begin(self) -> None:
        """A forward of the decoder begins."""
        if self._told:
            self._began, self._open = time.perf_counter(), {}

    def end(self, tokens: int = 0, decodes: bool = False, call: bool = False) -> None:
        """It is over; `tokens` went through it, none where it raised.

        `decodes`: one of each row; `call`: it was a request by itself.
        """
        stages, self._open = self._open, None
        if stages is None:
            return
        for stage, seconds in stages.items():
            self.tell(Took(stage, seconds))
        spent, error = time.perf_counter() - self._began, "" if tokens else "raised"
        self.tell(Took("token" if decodes else "prompt", spent, tokens, error))
        if call:
            self.tell(Took("call", spent, 0, error))

    @contextmanager
    def call(self) -> Iterator[None]:
        """A context: what is inside is one request."""
        began, error = time.perf_counter(), "raised"
        try:
            yield
            error = ""
        finally:
            self.tell(Took("call", time.perf_counter() - began, 0, error))

    def of(self, stage: str) -> AbstractContextManager[None]:
        """A context: what is inside belongs to a stage of the forward that is open, if any is."""
        return _Timed(self, stage) if self._told else _NOBODY

    def add(self, stage: str, seconds: float) -> None:
        """So many seconds more of a stage; told at once where no forward is open."""
        if self._open is None:
            self.tell(Took(stage, seconds))
        else:
            self._open[stage] = self._open.get(stage, 0.0) + seconds


class _Timed:
    """Measures one part of a stage."""

    __slots__ = ("_began", "_stage", "_timing")

    def __init__(self, timing: Timing, stage: str) -> None:
        self._timing, self._stage = timing, stage

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._timing.add(self._stage, time.perf_counter() - self._began)
