"""Which sessions are at home in this process: by locks that end with it, however it ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from pathlib import Path

from cmr.errors import ConfigError
from cmr.memory.store.folder import SAFELY, flock

OWNED, WANTED = ".owned", ".wanted"


class Claims:
    """Claims on sessions, in a folder that several processes share.

    A claim is a lock on a file in `.owned`. The system lets go of it when its process ends, also of
    one that is killed, and not before: two processes never have one session. Who waits for one
    leaves a file in `.wanted`.

    Args:
        root: the folder; it must be there.

    Raises:
        ConfigError: its file system has no locks, or it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._owned, self._wanted = root / OWNED, root / WANTED
        self._held, self._lock = dict[str, int](), threading.Lock()
        try:
            for folder in (self._owned, self._wanted):
                folder.mkdir(mode=0o700, exist_ok=True)
            # Of this process alone: another one that looks at the same time is not in its way.
            trial = f".try-{secrets.token_hex(8)}"
            if not self.take(trial):
                raise ConfigError(f"{root}: its file system has no locks between processes")
            self.free(trial)
        except OSError as error:
            raise ConfigError(f"{root}: {error.strerror or error}") from None

    @property
    def held(self) -> list[str]:
        """Names of the sessions that are at home here."""
        with self._lock:
            return list(self._held)

    def wanted(self) -> list[str]:
        """Those of them that another process waits for."""
        asked = set(os.listdir(self._wanted))
        return [name for name in self.held if file_name(name) in asked]

    def take(self, name: str) -> bool:
        """Claim a session; where another process has it, it is asked to let go, and False told."""
        path = self._owned / file_name(name)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | SAFELY, 0o600)
            if not flock(descriptor, exclusive=True):
                os.close(descriptor)
                asking = os.open(self._wanted / file_name(name), os.O_WRONLY | os.O_CREAT, 0o600)
                os.close(asking)
                return False
            # A file that its owner has removed meanwhile is locked by nobody else, and no claim.
            if _is(path, descriptor):
                with self._lock:
                    self._held[name] = descriptor
                self._no_longer_wanted(name)
                return True
            os.close(descriptor)

    def free(self, name: str) -> None:
        """Let go of a session."""
        with self._lock:
            descriptor = self._held.pop(name)
        # First of all this: who asks from now on asks the next one.
        self._no_longer_wanted(name)
        os.unlink(self._owned / file_name(name))
        os.close(descriptor)

    def _no_longer_wanted(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._wanted / file_name(name))


def file_name(name: str) -> str:
    """A session's name as that of a file: `tenant/id` is `tenant@id`, and no tenant has an `@`."""
    return name.replace("/", "@", 1)


def _is(path: Path, descriptor: int) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
