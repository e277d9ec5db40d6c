"""The engine that runs a model with a memory in this process, by batches of sessions.

A lane is a thread that takes the next batch from the queue and runs it by the library's public
`generate`, with a session a row. Forwards of several lanes take turns, so that with two lanes a new
request begins at the next token and not when the batch under way ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import StoppingCriteriaList

from cmr.errors import ConfigError
from cmr.integration.memory import Memory
from cmr.serving.engines.job import Job, Tell
from cmr.serving.engines.making import Making
from cmr.serving.engines.queued import Queued
from cmr.serving.engines.rows import Finish, Rows
from cmr.serving.engines.sampling import RowSampler
from cmr.serving.engines.storing import Storing
from cmr.serving.engines.ticket import Ticket
from cmr.serving.engines.turns import Turns
from cmr.serving.refusals import log_failure, refusal_of

log = logging.getLogger(__name__)
GATHER = 0.01
"""Seconds that a batch waits for another request when one has come."""


class BatchEngine(Queued):
    """Answers jobs in batches; see `Engine`.

    Args:
        model: the decoder, with `memory` attached.
        memory: attached with `remember="all"`, `unnamed="refuse"` and `keep=storing`.
        storing: says of each thread whether what it runs may be stored.
        making: makes the sessions.
        tokenizer: of the model; it must know a token that ends an answer.
        rows: of a batch, at most.
        tokens: of a batch's prompts with their padding, at most; one alone may have more.
        turns: the queue.
        lanes: batches under way at once.
        changed: called with names of sessions when something may have been stored in them.

    Raises:
        ConfigError: the tokenizer knows no token that ends an answer.
    """

    def __init__(
        self,
        model: Any,
        memory: Memory,
        storing: Storing,
        making: Making,
        tokenizer: Any,
        *,
        rows: int = 16,
        tokens: int = 16_384,
        turns: Turns,
        lanes: int = 2,
        changed: Callable[..., None] = lambda *_: None,
    ) -> None:
        super().__init__(turns)
        self._model, self._memory, self._storing = model, memory, storing
        self._tokenizer, self._ends = tokenizer, ends_of(model, tokenizer)
        self._rows, self._tokens, self._making = rows, tokens, making
        self._changed = changed
        self._lanes = [
            threading.Thread(target=self._work, name=f"cmr-lane-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for lane in self._lanes:
            lane.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are worked on."""
        return all(lane.is_alive() for lane in self._lanes)

    def submit(self, job: Job, tell: Tell) -> Ticket:
        """Take a job; see `Engine.submit`."""
        ticket = Ticket(job, tell, self._turns.drop, self._turns.answered)
        self._turns.put(ticket)
        return ticket

    def close(self, seconds: float) -> None:
        """Take no job any more, answer those there for so many seconds, and cancel the rest."""
        self.refuse(seconds)
        for lane in self._lanes:
            lane.join()

    # -- a lane ----------------------------------------------------------------------------------

    def _work(self) -> None:
        while tickets := self._turns.take(self._fits, self._rows, GATHER):
            began = time.perf_counter()
            try:
                self._answer([ticket for ticket in tickets if not ticket.cancelled])
            except Exception as error:
                # A lane goes on whatever one batch did to it.
                for ticket in tickets:
                    _told(ticket, error)
            finally:
                self._turns.done(tickets, time.perf_counter() - began)

    def _fits(self, batch: list[Ticket], one: Ticket) -> bool:
        """Whether a job goes with others: the memory has one search and one mode for all rows."""
        first = batch[0].job
        longest = max(len(ticket.job.ids) for ticket in (*batch, one))
        same = (first.mode, first.blocks) == (one.job.mode, one.job.blocks)
        return same and longest * (len(batch) + 1) <= self._tokens

    def _answer(self, tickets: list[Ticket]) -> None:
        """Answer those whose session can be had; each failure is its own request's."""
        with ExitStack() as stack:
            batch = []
            for ticket in tickets:
                try:
                    stack.enter_context(self._making.during(ticket.job))
                    batch.append(ticket)
                except Exception as error:
                    _told(ticket, error)
            self._run(batch)
            # Of the others all was stored before their clients were told, and saved since maybe.
            left = [ticket for ticket in batch if not ticket.stored]
            if left and left[0].job.mode == "read_write":
                self._changed(*(name for ticket in left for name in ticket.sessions))

    def _run(self, batch: list[Ticket]) -> None:
        if not batch:
            return
        try:
            self._generate(batch)
        except Exception as error:
            for ticket in batch:
                # What one row does wrong is not to cost the others their answers.
                if len(batch) > 1 and not ticket.begun and not ticket.over:
                    self._run([ticket])
                else:
                    _told(ticket, error)

    def _generate(self, batch: Sequence[Ticket]) -> None:
        jobs, device = [ticket.job for ticket in batch], self._model.device
        first, longest = jobs[0], max(len(job.ids) for job in jobs)
        pad = self._tokenizer.pad_token_id
        pad = min(self._ends) if pad is None else pad
        ids = torch.full((len(jobs), longest), pad)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(jobs):
            # In front, so that all rows go on at the same column.
            ids[row, longest - len(job.ids) :] = torch.tensor(job.ids)
            mask[row, longest - len(job.ids) :] = 1
        names = [job.session for job in jobs if job.session is not None]
        handle = None if first.mode == "off" else self._memory.session(*names)
        recalled = None if handle is None else lambda: handle.recalled
        finish = self._storing_by(handle, batch) if first.mode == "read_write" else None
        now = time.perf_counter()
        for ticket in batch:
            ticket.started = ticket.started or now
        with ExitStack() as stack:
            if handle is None:
                stack.enter_context(self._memory.paused())
            if first.mode == "read":
                stack.enter_context(self._storing.nothing())
            if first.blocks is not None:
                stack.enter_context(self._memory.retrieval(blocks=first.blocks))
            generate = self._model.generate if handle is None else handle.generate
            generate(
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(job.max_tokens for job in jobs),
                do_sample=False,
                num_beams=1,
                eos_token_id=sorted(self._ends),
                pad_token_id=pad,
                logits_processor=[RowSampler(jobs, device)],
                stopping_criteria=StoppingCriteriaList(
                    [Rows(batch, self._tokenizer, self._ends, recalled, finish)]
                ),
            )

    def _storing_by(self, handle: Any, batch: Sequence[Ticket]) -> Finish:
        """What stores rows of a batch whose answers are complete."""

        def finish(rows: Sequence[int]) -> None:
            handle.finish(rows)
            # Before their clients are told: the next save is to have it.
            self._changed(*(handle.names[row] for row in rows))
            for row in rows:
                batch[row].stored = True

        return finish


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer, as the model says, else as its tokenizer does.

    Raises `ConfigError` where neither knows one.
    """
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    if found is None:
        raise ConfigError("tokenizer: one with a token that ends an answer expected")
    return frozenset([found] if isinstance(found, int) else found)


def _told(ticket: Ticket, error: Exception) -> None:
    log_failure(log, error)
    ticket.fail(refusal_of(error))
