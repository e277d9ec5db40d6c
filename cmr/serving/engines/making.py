"""Sessions are made for tenants, each of which may have so many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cmr.errors import CMRError, UnknownSessionError
from cmr.integration.memory import Memory
from cmr.serving.engines.job import Job
from cmr.serving.keeping import Keeping
from cmr.serving.refusals import Refusal


class Making:
    """Makes the sessions of a memory, `most` at once for each tenant; None: any number.

    `keeping`: knows where they are.
    """

    def __init__(self, memory: Memory, most: int | None, keeping: Keeping) -> None:
        self._memory, self._most, self._keeping = memory, most, keeping
        self._lock = threading.Lock()

    def make(self, session: str, ephemeral: bool | None = None) -> None:
        """A session of this name, its tenant in front, is there.

        `ephemeral` is of one that is made; None: it is not, or as it is. Raises `Refusal` for one
        too many, or one that is there and is not as `ephemeral` says.
        """
        with self._lock:
            if not self._there(session):
                self._room(session)
            try:
                self._memory.session(session, create=True, ephemeral=ephemeral)
            except CMRError:
                raise
            except ValueError:
                raise Refusal(
                    409, "not_ephemeral", "the session is there and not an ephemeral one"
                ) from None

    @contextmanager
    def during(self, job: Job) -> Iterator[None]:
        """The session of a job is there inside; one that is the job's alone ends with it.

        Raises `Refusal` or `UnknownSessionError` where it cannot be had.
        """
        if job.session is None:
            yield
            return
        self._keeping.enter(job.session)
        try:
            if job.mode == "read":
                self._memory.session(job.session)  # nobody's memory is begun by looking at it
            else:
                self.make(job.session, job.ephemeral or None)
            yield
        finally:
            if job.once and self._there(job.session):
                self._memory.forget(job.session, files=False)
            self._keeping.leave(job.session)

    @contextmanager
    def new(self, session: str) -> Iterator[None]:
        """Inside, a session of this name may be made; raises `Refusal` where there is one."""
        with self._lock:
            if self._there(session):
                raise Refusal(409, "session_exists", "there is a session of that id already")
            self._room(session)
            yield

    def _there(self, session: str) -> bool:
        try:
            self._memory.session(session)
        except UnknownSessionError:
            return False
        return True

    def _room(self, session: str) -> None:
        if self._most is None:
            return
        if len(self._keeping.names(session.partition("/")[0])) >= self._most:
            raise Refusal(429, "too_many_sessions", f"at most {self._most} sessions at once")
