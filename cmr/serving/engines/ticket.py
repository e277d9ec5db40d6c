"""A job on its way through an engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cmr.serving.engines.job import Ended, Event, Failed, Job, Piece, Tell

log = logging.getLogger(__name__)


class Ticket:
    """A job that an engine has taken, with who is to be told of it.

    Attributes:
        job: what is wanted.
        cancelled: whether nobody waits for it any more.
        begun: whether its client was told of a piece.
        over: whether its client was told of the end.
        stored: whether all of it was stored before that.
        came, started, spoke: times by `time.perf_counter`: when it came, when the model was first
            run for it, and when it said its first token; 0 where that has not happened.
    """

    def __init__(
        self,
        job: Job,
        tell: Tell,
        drop: Callable[[Ticket], None],
        answered: Callable[[Ticket], None] = lambda _: None,
    ) -> None:
        self.job, self._tell, self._drop, self._answered = job, tell, drop, answered
        self.cancelled = self.begun = self.over = self.stored = False
        self.came, self.started, self.spoke = time.perf_counter(), 0.0, 0.0

    @property
    def sessions(self) -> tuple[str, ...]:
        """Whose turn it takes."""
        return () if self.job.session is None else (self.job.session,)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True
        self._drop(self)

    def say(self, text: str) -> None:
        """The next characters of the answer."""
        if text:
            self.begun = True
            self._hand_on(Piece(text))

    def end(self, ended: Ended) -> None:
        """The answer is complete."""
        self.over = True
        # First of all: who is told may ask the next thing at once.
        self._answered(self)
        self._hand_on(ended)

    def fail(self, error: Exception) -> None:
        """There is no answer, or not all of it."""
        if not self.over:
            self.over = True
            self._hand_on(Failed(error))

    def _hand_on(self, event: Event) -> None:
        try:
            self._tell(event)
        except Exception as error:
            # Who listened is gone, with its event loop: that is no trouble of the others' rows.
            log.warning("a listener was lost: %s", type(error).__name__)
            self.cancelled = True
