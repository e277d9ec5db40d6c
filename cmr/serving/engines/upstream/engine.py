"""The engine that keeps the memory here and has another server answer.

The model of this process reads what was said and finds what goes with a question. A thread takes
jobs from the queue, an event loop on another one has their answers come, and a third one runs the
model: one thing at a time, so that no memory is read while it is written.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from typing import Any, TypeVar

import torch

from cmr.integration.memory import Memory
from cmr.serving.engines.job import Ended, Job, Passage, Tell
from cmr.serving.engines.making import Making
from cmr.serving.engines.pieces import Until
from cmr.serving.engines.queued import Queued
from cmr.serving.engines.ticket import Ticket
from cmr.serving.engines.turns import Turns
from cmr.serving.engines.upstream.asking import body_of, question, unsent
from cmr.serving.engines.upstream.client import Client, Heard, Upstream
from cmr.serving.prompts import Prompts
from cmr.serving.refusals import log_failure, refusal_of

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class UpstreamEngine(Queued):
    """Answers jobs by another server; see `Engine`.

    Args:
        upstream: the server.
        memory: of this process, attached with `remember="all"`, `unnamed="refuse"`.
        making: makes the sessions.
        prompts: by the tokenizer of the memory's model.
        at_once: requests to the server at once.
        turns: the queue.
        changed: called with names of sessions when something may have been stored in them.
    """

    def __init__(
        self,
        upstream: Upstream,
        memory: Memory,
        making: Making,
        prompts: Prompts,
        *,
        at_once: int = 32,
        turns: Turns,
        changed: Callable[..., None] = lambda *_: None,
    ) -> None:
        super().__init__(turns)
        self._memory, self._making, self._prompts = memory, making, prompts
        self._changed = changed
        self._free = threading.Semaphore(at_once)
        self._local = ThreadPoolExecutor(1, "cmr-memory")
        self._reading: dict[Ticket, asyncio.Task[None]] = {}
        self._loop, self._client = asyncio.new_event_loop(), Client(upstream)
        self._threads = [
            threading.Thread(target=self._loop.run_forever, name="cmr-upstream", daemon=True),
            threading.Thread(target=self._take, name="cmr-upstream-jobs", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are worked on."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, job: Job, tell: Tell) -> Ticket:
        """Take a job; see `Engine.submit`."""
        ticket = Ticket(job, tell, self._drop)
        self._turns.put(ticket)
        return ticket

    def close(self, seconds: float) -> None:
        """Take no job any more, answer those there for so many seconds, and cancel the rest."""
        self.refuse(seconds)
        running, taking = self._threads
        taking.join()
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        running.join()
        self._local.shutdown()
        self._loop.close()

    def _drop(self, ticket: Ticket) -> None:
        self._turns.drop(ticket)
        # After the end nobody is there to be stopped.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop, ticket)

    def _take(self) -> None:
        while True:
            self._free.acquire()
            tickets = self._turns.take(lambda _, __: False, 1, 0.0)
            if not tickets:
                return
            asyncio.run_coroutine_threadsafe(self._work(tickets[0]), self._loop)

    # -- on the event loop -----------------------------------------------------------------------

    def _stop(self, ticket: Ticket) -> None:
        # What this process does itself goes on to its end: the memory is changed wholly or not.
        if ticket in self._reading:
            self._reading[ticket].cancel()

    async def _work(self, ticket: Ticket) -> None:
        began, stack = time.perf_counter(), ExitStack()
        try:
            if not ticket.cancelled:
                await self._here(stack.enter_context, self._making.during(ticket.job))
                await self._answer(ticket)
        except Exception as error:
            log_failure(log, error)
            ticket.fail(refusal_of(error))
        finally:
            try:
                await self._here(stack.close)
            finally:
                self._turns.done([ticket], time.perf_counter() - began)
                self._free.release()

    async def _answer(self, ticket: Ticket) -> None:
        job, heard = ticket.job, Heard()
        passages = await self._here(self._recalled, job)
        ticket.started = time.perf_counter()
        reading = asyncio.ensure_future(self._read(ticket, passages, heard))
        self._reading[ticket] = reading
        try:
            if ticket.cancelled:
                reading.cancel()
            await reading
        except asyncio.CancelledError:
            heard.reason = "cancelled"
        finally:
            del self._reading[ticket]
        tokens = self._prompts.length(heard.text) if heard.tokens is None else heard.tokens
        if job.mode == "read_write" and (heard.text or heard.calls):
            # Before the client is told: the next request, and the next save, is to have it.
            await self._here(self._remember, job, heard)
            self._changed(*ticket.sessions)
        now, spoke = time.perf_counter(), ticket.spoke or time.perf_counter()
        ticket.end(
            Ended(
                heard.reason,
                len(job.ids) if heard.prompt is None else heard.prompt,
                tokens,
                passages,
                ticket.started - ticket.came,
                spoke - ticket.started,
                now - ticket.came,
                heard.calls,
            )
        )

    async def _read(self, ticket: Ticket, passages: tuple[Passage, ...], heard: Heard) -> None:
        # Some servers leave the stop word in the answer, or know of none.
        until, told = Until(ticket.job.stops), list[str]()

        def say(text: str) -> None:
            told.append(text)
            ticket.say(text)

        answer = self._client.answer(*body_of(ticket.job, passages), heard)
        try:
            async with aclosing(answer) as pieces:
                async for piece in pieces:
                    ticket.spoke = ticket.spoke or time.perf_counter()
                    if until.stopped:
                        break
                    say(until.add(piece))
            say(until.end())
        finally:
            heard.text = "".join(told)
        if until.stopped:
            heard.reason = "stop"

    async def _here(self, work: Callable[..., Result], *given: object) -> Result:
        """What the model of this process does, on its thread."""
        return await self._loop.run_in_executor(self._local, work, *given)

    # -- on the thread of the model --------------------------------------------------------------

    def _recalled(self, job: Job) -> tuple[Passage, ...]:
        asked = question(job)
        if job.session is None or not asked:
            return ()
        settings = {} if job.blocks is None else {"blocks": job.blocks}
        found = self._memory.session(job.session).search(asked, **settings)
        return unsent(job, [
            Passage(one.text or "", one.score, one.gate, one.start, one.end, one.read)
            for one in found
        ])  # fmt: skip

    def _remember(self, job: Job, heard: Heard) -> None:
        assert job.session is not None
        if job.said.messages:
            answer: dict[str, object] = {"role": "assistant", "content": heard.text}
            if heard.calls:
                answer["tool_calls"] = [_turn(call) for call in heard.calls]
            ids = self._prompts.of_said([*job.said.turns, answer])
        else:
            ids = self._prompts.of_document(job.said.text + heard.text)
        self._memory.session(job.session).remember(torch.tensor(ids))


def _turn(call: dict[str, Any]) -> dict[str, Any]:
    """A call as chat templates take it: with the arguments as an object, where they are one."""
    function = dict(call["function"])
    with suppress(ValueError, RecursionError):
        function["arguments"] = json.loads(function["arguments"])
    return {"type": "function", "function": function}
