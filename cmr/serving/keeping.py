"""The memory is kept in a folder: now and then, and when the server ends.

Where several servers share the folder it is kept session by session, see `homes`.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from cmr.integration.memory import Memory

log = logging.getLogger(__name__)


class Keeping:
    """Saves a memory by a thread of its own, where something has changed.

    Args:
        memory: what is kept.
        folder: where; None: nowhere, and it ends with the process.
        key: encrypts it.
        every: seconds between two saves.

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
        self._dirty, self._ends, self._saving = False, threading.Event(), threading.Lock()
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
        self._dirty = True

    def enter(self, *sessions: str) -> None:
        """Have sessions here, whose turn it is: in one folder of one's own they always are."""

    def leave(self, *sessions: str) -> None:
        """The turn of sessions is over."""

    def names(self, tenant: str) -> list[str]:
        """Names of a tenant's sessions, oldest first."""
        return [name for name in self._memory.sessions if name.startswith(f"{tenant}/")]

    def close(self) -> None:
        """Save what has changed, for the last time."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()
        self._save()

    def _work(self) -> None:
        while not self._ends.wait(self._every):
            self._save()

    def _save(self) -> None:
        with self._saving:
            if self._folder is None or not self._dirty:
                return
            # Before the save: what comes while it runs belongs to the next one.
            self._dirty, began = False, time.time()
            try:
                blocks, size = self._write()
            except Exception as error:
                self._dirty, self.failed = True, type(error).__name__
                self.failures += 1
                log.error("the memory could not be saved: %s", self.failed)
                return
            self.saves, self.failed, self.saved_until = self.saves + 1, "", began
            log.info("saved %d blocks, %d bytes written, in %.2f s",
                     blocks, size, time.time() - began)  # fmt: skip

    def _write(self) -> tuple[int, int]:
        """Save; returns how many blocks are in the folder, and the bytes that were written."""
        assert self._folder is not None
        report = self._memory.save(self._folder, key=self._key)
        return report.blocks, report.bytes_written
