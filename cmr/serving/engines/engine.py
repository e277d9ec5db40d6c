"""The one face by which the server knows what runs the model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from cmr.serving.engines.job import Job, Tell


class Submitted(Protocol):
    """A job that an engine has taken."""

    def cancel(self) -> None:
        """Nobody waits for it any more. Safe to call twice, and after the end."""


class Engine(Protocol):
    """Runs the model for many clients; all of it may be called from any thread."""

    @property
    def alive(self) -> bool:
        """Whether jobs are worked on."""

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs wait, and how many are being answered."""

    def submit(self, job: Job, tell: Tell) -> Submitted:
        """Take a job; `tell` is told of its pieces and its end, by the engine's thread.

        Jobs of one session are answered one at a time, in the order in which they came. Raises
        `Refusal` where the queue is full or the engine is closing.
        """

    def alone(self, *sessions: str, seconds: float) -> AbstractContextManager[None]:
        """In turn with the jobs of these sessions: none of them is answered inside.

        Raises `Refusal` where the turn does not come within so many seconds.
        """

    def refuse(self, seconds: float) -> None:
        """Take no job any more, and refuse those that are not answered within so many seconds."""

    def close(self, seconds: float) -> None:
        """Take no job any more, answer those there for so many seconds, and cancel the rest."""
