"""What a request asked of memory and got, told to whoever steers; nothing is noted for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cmr._fork import renew
from cmr.integration.requests.watched import Watched


class Answer(NamedTuple):
    """One row of the inputs of a request that is over: a `generate`, or a prompt outside of one.

    Attributes:
        session: its name; '' where that has ended since.
        seconds: of the whole request, by the host's clock.
        certainty: the largest of its searches; 0: it had nothing to search.
        recalled: whether one of them gave layers something to read.
        relevance: the largest of the blocks that were read; None: nothing was.
        nbytes: of keys and values (or states) that layers read of memory, once a search.
        tiers: blocks that were read, by the number of the tier in which they lay.
    """

    session: str
    seconds: float
    certainty: float = 0.0
    recalled: bool = False
    relevance: float | None = None
    nbytes: int = 0
    tiers: tuple[int, ...] = ()


class Found(NamedTuple):
    """What a search chose for the rows of a forward, all tensors `[rows]` but for the last.

    Attributes:
        sessions: number of each row.
        certainty: float32.
        relevance: float32, the largest of its blocks, -inf where it chose none.
        nbytes: int64.
        tiers: `[rows, tiers]` int64.
    """

    sessions: Sequence[int]
    certainty: torch.Tensor
    relevance: torch.Tensor
    nbytes: torch.Tensor
    tiers: torch.Tensor


@dataclass
class _Open:
    """A request under way in a thread, inside of a `generate` that is its `outer` one.

    `inputs`: its rows; None where a forward's are its own.
    """

    began: float
    outer: _Open | None = None
    generates: bool = False
    inputs: int | None = None
    found: list[Found] | None = None


class _OfThread(threading.local):
    open: _Open | None = None


class Answers(Watched[list[Answer]]):
    """Puts together what the searches of a request found, and tells it when the request is over.

    Attributes:
        under_way: requests that have begun and not ended, of those that began while it was on;
            forwards outside of a `generate`, which hold the memory's lock, are not counted.
        ended: `time.monotonic()` when the last one ended.
    """

    who = "who is told of a memory's requests"

    def __init__(self, name_of: Callable[[int], str]) -> None:
        super().__init__()
        self._name_of = name_of
        self._here = _OfThread()
        self._counting = threading.Lock()
        self.under_way, self.ended = 0, time.monotonic()
        renew(self, "_counting", threading.Lock)
        # In the child of a fork none of the parent's requests ever ends.
        renew(self, "under_way", lambda: 0)

    @contextmanager
    def call(self) -> Iterator[None]:
        """A context: what is inside is one request; one that raises is not told."""
        outer = self._here.open
        with self._counting:
            self.under_way += 1
        self._here.open = _Open(time.perf_counter(), outer, generates=True)
        try:
            yield
            self.over()
        finally:
            self._here.open = outer
            self.ended = time.monotonic()
            with self._counting:
                self.under_way -= 1

    def begin(self) -> None:
        """A forward begins that belongs to no `generate`, though it may be called from within."""
        outer = self._here.open
        # What an interrupt has left of a forward is over.
        if outer is not None and not outer.generates:
            outer = outer.outer
        self._here.open = _Open(time.perf_counter(), outer)

    def over(self, told: bool = True) -> None:
        """The request of this thread is over; `told`: as one that gave an answer."""
        request = self._here.open
        self._here.open = None if request is None else request.outer
        self.ended = time.monotonic()
        if request is None or not request.found or not told:
            return
        self.tell(_rows(request, self._name_of))

    def note(self, found: Found, inputs: int | None) -> None:
        """A search of this thread's request; `inputs`: rows of a `generate`, None: of a forward."""
        request = self._here.open
        if request is not None:
            request.inputs = inputs
            request.found = [*(request.found or []), found]


def _rows(request: _Open, name_of: Callable[[int], str]) -> list[Answer]:
    """The answers of a request, row by row of its inputs; waits for the device."""
    seconds = time.perf_counter() - request.began
    rows: dict[int, Answer] = {}
    for found in request.found or ():
        batch = len(found.sessions)
        inputs = request.inputs if request.inputs and batch % request.inputs == 0 else batch
        each = zip(found.sessions, found.certainty.tolist(), found.relevance.tolist(),
                   found.nbytes.tolist(), found.tiers.tolist(), strict=True)  # fmt: skip
        for row, (session, certainty, relevance, nbytes, tiers) in enumerate(each):
            # Beams and several returned sequences come as groups of rows of one input.
            number = row // (batch // inputs)
            before = rows.get(number, Answer(name_of(session), seconds))
            read = sum(tiers) > 0
            rows[number] = before._replace(
                certainty=max(certainty, before.certainty),
                recalled=before.recalled or read,
                relevance=_larger(before.relevance, relevance if read else None),
                nbytes=before.nbytes + nbytes,
                tiers=tuple(map(sum, zip(tiers, before.tiers or (0,) * len(tiers), strict=True))),
            )
    return [rows[number] for number in sorted(rows)]


def _larger(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return max(known) if known else None
