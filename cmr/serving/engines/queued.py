"""What engines have in common that take their jobs from a queue of turns."""

from __future__ import annotations

from contextlib import AbstractContextManager

from cmr.serving.engines.turns import Turns
from cmr.serving.refusals import Refusal


class Queued:
    """The side of an `Engine` that is its queue's.

    Args:
        turns: the queue.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs wait, and how many are being answered."""
        return self._turns.load

    def alone(self, *sessions: str, seconds: float) -> AbstractContextManager[None]:
        """In turn with the jobs of these sessions; see `Engine.alone`."""
        return self._turns.alone(*sessions, seconds=seconds)

    def refuse(self, seconds: float) -> None:
        """Take no job any more, wait for those there so many seconds, and cancel the rest."""
        for ticket in self._turns.close(seconds):
            ticket.cancel()
            ticket.fail(Refusal(503, "closing", "the server ended before the answer did", 5))
