"""The memory is kept in a folder: now and then, and when the server ends.

Where several servers share the folder it is kept session by session, see `homes`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path

from cmr.integration.memory import Memory

log = logging.getLogger(__name__)


class Keeping:
    """Saves a memory by a thread of its own, where something has changed.

    A save begins so early that it should have ended `every` seconds after the first change that it
    saves: three times as long before as saves took lately. At least a quarter of `every` lies
    between a change and the save that is begun for it, however long saves take.

    Args:
        memory: what is kept.
        folder: where; None: nowhere, and it ends with the process.
        key: encrypts it.
        every: seconds within which what was stored is to be saved.

    Attributes:
        saves: how many were done.
        failures: how many could not be.
        failed: the kind of the last save's error; '' where there was none.
        shared: whether other servers keep sessions in the same folder.
        saved_until: Unix time; what was stored until then is in the folder; 0 before the first.
    """

    shared = False

    def __init__(
        self, memory: Memory, folder: Path | None, key: bytes | str | None, every: float
    ) -> None:
        self._memory, self._folder, self._key, self._every = memory, folder, key, every
        # When the next save begins, by `time.monotonic`; never, while nothing has changed.
        self._due, self._took, self._wake = math.inf, every / 4, threading.Condition()
        self._ends, self._saving = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._work, name="cmr-save", daemon=True)
        self.saves = self.failures = 0
        self.failed, self.saved_until = "", 0.0

    def start(self) -> None:
        """Save from now on; without a folder there is nothing to do."""
        if self._folder is not None:
            self._thread.start()

    def changed(self, *sessions: str) -> None:
        """Something may have been stored in them or forgotten since the last save.

        In one folder all are saved at once, whichever they are.
        """
        with self._wake:
            if self._due == math.inf:
                early = min(3 * self._took, 0.75 * self._every)
                self._due = time.monotonic() + self._every - early
                self._wake.notify()

    def enter(self, *sessions: str) -> None:
        """Have sessions here, whose turn it is: in one folder of one's own they always are."""

    def leave(self, *sessions: str) -> None:
        """The turn of sessions is over."""

    def names(self, tenant: str) -> list[str]:
        """Names of a tenant's sessions, oldest first."""
        return [name for name in self._memory.sessions if name.startswith(f"{tenant}/")]

    def close(self) -> None:
        """Save what has changed, for the last time."""
        with self._wake:
            self._ends.set()
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._save()

    def _work(self) -> None:
        while self._wait():
            self._save()

    def _wait(self) -> bool:
        """Wait until a save is due; False: the server ends."""
        with self._wake:
            while not self._ends.is_set() and (left := self._due - time.monotonic()) > 0:
                self._wake.wait(min(left, threading.TIMEOUT_MAX))
        return not self._ends.is_set()

    def _save(self) -> None:
        with self._saving:
            if self._folder is None or self._due == math.inf:
                return
            # Before the save: what comes while it runs belongs to the next one.
            with self._wake:
                self._due = math.inf
            began, clock = time.time(), time.monotonic()
            try:
                blocks, size = self._write()
            except Exception as error:
                self.failures, self.failed = self.failures + 1, type(error).__name__
                log.error("the memory could not be saved: %s", self.failed)
                with self._wake:
                    self._due = time.monotonic() + self._every / 2
                return
            took = time.monotonic() - clock
            self._took = max(took, 0.9 * self._took)
            self.saves, self.failed, self.saved_until = self.saves + 1, "", began
            log.info("saved %d blocks, %d bytes written, in %.2f s", blocks, size, took)

    def _write(self) -> tuple[int, int]:
        """Save; returns how many blocks are in the folder, and the bytes that were written."""
        assert self._folder is not None
        report = self._memory.save(self._folder, key=self._key)
        return report.blocks, report.bytes_written
