"""One answer of an engine, as a coroutine reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from cmr.serving.engines.engine import Engine
from cmr.serving.engines.job import Ended, Event, Failed, Job
from cmr.serving.refusals import Refusal

LOOK = 0.5
"""Seconds between two looks whether the client is there still."""


class Answer:
    """What an engine tells of a job, which it has taken when this is made.

    A reader that is slow slows nobody down: what it has not fetched waits here, and is no more than
    the answer.

    Args:
        engine: gets the job.
        job: what is wanted.
        seconds: in which the answer must be complete.
        gone: whether the client has left.
        ended: is told of the end of an answer, also where its client has left.

    Raises:
        Refusal: the engine does not take it.
    """

    def __init__(
        self,
        engine: Engine,
        job: Job,
        seconds: float,
        gone: Callable[[], Awaitable[bool]],
        ended: Callable[[Ended], object] = lambda _: None,
    ) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self._seconds, self._gone, self._ended = seconds, gone, ended
        self._deadline = self._loop.time() + seconds
        self._submitted = engine.submit(job, self._tell)

    def cancel(self) -> None:
        """Nobody waits for it any more. Safe to call after the end."""
        self._submitted.cancel()

    def _tell(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._ended(event)
        self._loop.call_soon_threadsafe(self._told.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """What is told, to the end; whoever leaves early cancels the job.

        Nothing more comes where the client has left. Raises `Refusal` where the answer is not
        complete in time.
        """
        looked = self._loop.time()
        try:
            while True:
                now = self._loop.time()
                # Also while tokens come: whoever writes to a client that has left is not told.
                if now - looked >= LOOK:
                    looked = now
                    if await self._gone():
                        return
                if now >= self._deadline:
                    raise Refusal(504, "deadline", f"no answer within {self._seconds:g} seconds", 1)
                try:
                    wait = min(LOOK, self._deadline - now)
                    event = await asyncio.wait_for(self._told.get(), wait)
                except asyncio.TimeoutError:
                    continue
                yield event
                if isinstance(event, (Ended, Failed)):
                    return
        finally:
            self.cancel()
