"""The rows of a batch while it is generated: what each says, and where each ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from cmr.serving.engines.job import Ended, Passage
from cmr.serving.engines.pieces import Pieces
from cmr.serving.engines.ticket import Ticket
from cmr.serving.refusals import log_failure, refusal_of

log = logging.getLogger(__name__)
# Tokens between two looks at what is recalled, as many as between two searches by default.
LOOK_EVERY = 16
Recalled = Callable[[], Sequence[Sequence[Any]]]
Finish = Callable[[Sequence[int]], object]


class Rows(StoppingCriteria):
    """Hands each new token to its row's client, and ends each row where its own job says.

    A criterion and no streamer, as these know only of one row and cannot end any. A row that is
    over is filled up by `generate`, and filler is not stored.

    Args:
        tickets: of the rows.
        tokenizer: turns tokens into text.
        ends: ids that end an answer.
        recalled: gives the passages that each row could read by the last forward; None: none does.
        finish: stores rows by their numbers before their end is told; None: nothing is stored.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        tokenizer: Any,
        ends: Collection[int],
        recalled: Recalled | None,
        finish: Finish | None,
    ) -> None:
        self._rows = [_Row(ticket, tokenizer, ends) for ticket in tickets]
        self._recalled, self._finish, self._steps = recalled, finish, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """`[rows]` bool, True for those that are over."""
        tokens, ending = input_ids[:, -1].tolist(), []
        for row, token in zip(self._rows, tokens, strict=True):
            if not row.ticket.over and row.take(token):
                ending.append(row)
        looks = self._steps % LOOK_EVERY == 0 or ending
        self._steps += 1
        if looks and self._recalled is not None:
            # None at all where something of what they read has been forgotten since.
            for row, passages in zip(self._rows, self._recalled(), strict=False):
                if not row.ticket.over:
                    row.note(passages)
        if ending:
            self._end(ending)
        over = [row.ticket.over for row in self._rows]
        return torch.tensor(over, device=input_ids.device)

    def _end(self, ending: Sequence[_Row]) -> None:
        """Tell the end of some rows, when what they said is stored."""
        try:
            if self._finish is not None:
                self._finish([at for at, row in enumerate(self._rows) if row in ending])
        except Exception as error:
            # Nobody is told that it is remembered, and the other rows go on.
            log_failure(log, error)
            for row in ending:
                row.ticket.fail(refusal_of(error))
        for row in ending:
            if not row.ticket.over:
                row.end()


class _Row:
    """One answer on its way."""

    def __init__(self, ticket: Ticket, tokenizer: Any, ends: Collection[int]) -> None:
        self.ticket, self._ends, self._tokens, self._reason = ticket, ends, 0, ""
        self._pieces = Pieces(tokenizer, ticket.job.stops)
        self._passages: dict[tuple[int, int], Passage] = {}

    def take(self, token: int) -> bool:
        """The next token; whether the answer is over by it."""
        if not self.ticket.spoke:
            self.ticket.spoke = time.perf_counter()
        if self.ticket.cancelled:
            self._reason = "cancelled"
        elif token in self._ends:
            self._reason = "stop"
        else:
            self._tokens += 1
            self.ticket.say(self._pieces.add(token))
            if self._pieces.stopped:
                self._reason = "stop"
            elif self._tokens >= self.ticket.job.max_tokens:
                self._reason = "length"
        return bool(self._reason)

    def note(self, passages: Sequence[Any]) -> None:
        """What it could read by the last forward."""
        for one in passages:
            found = Passage(one.text or "", one.score, one.gate, one.start, one.end, one.read)
            before = self._passages.get((one.start, one.end))
            if before is None or before.score < found.score:
                self._passages[one.start, one.end] = found

    def end(self) -> None:
        """Tell what was held back, and the end."""
        self.ticket.say(self._pieces.end())
        now, ticket = time.perf_counter(), self.ticket
        best = sorted(self._passages.values(), key=lambda passage: -passage.score)
        ticket.end(
            Ended(
                self._reason,
                len(ticket.job.ids),
                self._tokens,
                tuple(best),
                ticket.started - ticket.came,
                ticket.spoke - ticket.started,
                now - ticket.came,
            )
        )
