"""Sessions are kept one by one, in a folder that several servers share."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from cmr.errors import ConfigError, StoreError, UnknownSessionError
from cmr.integration.memory import Memory
from cmr.memory.store.folder import Folder
from cmr.serving.engines.turns import Turns
from cmr.serving.homes.claims import Claims, file_name
from cmr.serving.keeping import Keeping
from cmr.serving.refusals import Refusal

log = logging.getLogger(__name__)
LOOK = 0.05
"""Seconds between two looks at who wants a session that is here, or has one that is wanted here."""


class Homes(Keeping):
    """Keeps each session in a folder of its own, while it is at home here.

    A session comes here when it is asked for: another server that has it saves it and lets go; of
    one that was killed what it saved last is taken up. Where the memory has no room for it, those
    that were not asked for longest are saved and leave.

    Args:
        memory: what is kept; none of its sessions is in it yet.
        root: the folder that the servers share.
        key: encrypts it.
        every: seconds between two saves.

    Attributes:
        turns: the queue of the requests.

    Raises:
        ConfigError: the folder cannot be shared, or other things are in it.
    """

    shared = True
    turns: Turns

    def __init__(self, memory: Memory, root: Path, key: bytes | str | None, every: float) -> None:
        super().__init__(memory, root, key, every)
        require_shared(root)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root, self._claims = root, Claims(root)
        # A claim is an open file, of which connections need some, too.
        self._most = _files() // 2
        # In the order in which they changed: who waits longest is saved first.
        self._changed, self._used = dict[str, None](), dict[str, float]()
        self._lock = threading.Lock()
        self._away, self._failed = set[str](), dict[str, Exception]()
        self._called = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="cmr-homes", daemon=True)
            for work in (self._fetch, self._let_go)
        ]

    def start(self) -> None:
        """Save from now on, fetch what is asked for, and let go of what others want."""
        super().start()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Save what has changed, and let go of everything."""
        self._ends.set()
        self._called.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        super().close()
        for name in self._claims.held:
            self._claims.free(name)

    def changed(self, *sessions: str) -> None:
        """Something may have been stored in them or forgotten since the last save."""
        with self._lock:
            self._changed.update(dict.fromkeys(filter(_homed, sessions)))
        super().changed(*sessions)

    def names(self, tenant: str) -> list[str]:
        """Names of a tenant's sessions, here or saved."""
        prefix = file_name(f"{tenant}/")
        saved = {
            f"{tenant}/{path.name.removeprefix(prefix)}"
            for path in self._root.iterdir()
            if path.name.startswith(prefix)
        }
        return sorted(saved.union(super().names(tenant)))

    def here(self, name: str) -> bool:
        """Whether a session is at home here; it is fetched where it is not.

        Nobody waits for that who has the turn of another session: two servers could wait for each
        other.
        """
        with self._lock:
            if not _homed(name) or name in self._failed or name in self._used:
                return True
            self._away.add(name)
        self._called.set()
        return False

    def enter(self, *sessions: str) -> None:
        """The turn of sessions that are here begins; raises what went wrong when they came."""
        for name in filter(_homed, sessions):
            with self._lock:
                if error := self._failed.pop(name, None):
                    raise error
                self._used[name] = time.monotonic()

    def leave(self, *sessions: str) -> None:
        """The turn of sessions is over; one that has ended goes from the folder, too."""
        for name in filter(_homed, sessions):
            if name not in self._used or name in self._memory.sessions:
                continue
            if self._path(name).exists():
                # What became of it, under another name or in another session, is kept first.
                self._save()
                with self._saving:
                    shutil.rmtree(self._path(name))
            self._forgotten(name)

    # -- saving ----------------------------------------------------------------------------------

    def _write(self) -> tuple[int, int]:
        with self._lock:
            names, self._changed = self._changed, {}
        blocks = size = 0
        wrong: Exception | None = None
        for name in names:
            try:
                found = self._save_one(name)
                blocks, size = blocks + found.blocks, size + found.bytes_written
            except (UnknownSessionError, _EphemeralError):
                continue  # it has ended meanwhile, or is not to be saved
            except Exception as error:
                # The others are saved all the same, and this one is tried again.
                wrong = error
                with self._lock:
                    self._changed[name] = None
        if wrong is not None:
            raise wrong
        return blocks, size

    def _save_one(self, name: str) -> Any:
        if self._ephemeral(name):
            raise _EphemeralError
        return self._memory.save(self._path(name), sessions=[name], key=self._key)

    def _ephemeral(self, name: str) -> bool:
        self._memory.session(name)
        try:
            self._memory.session(name, create=True, ephemeral=False)
        except ValueError:
            return True
        return False

    # -- coming and going ------------------------------------------------------------------------

    def _fetch(self) -> None:
        while not self._ends.is_set():
            with self._lock:
                away = list(self._away)
                self._called.clear()
            for name in away:
                try:
                    if len(self._used) >= self._most:
                        self._make_room()
                    if not self._claims.take(name):
                        continue
                    if Folder(self._path(name)).exists():
                        self._load(name)
                    with self._lock:
                        self._used[name] = time.monotonic()
                except Exception as error:
                    log.error("a session could not be fetched: %s", type(error).__name__)
                    if name in self._claims.held:
                        self._claims.free(name)
                    with self._lock:
                        self._failed[name] = error
                with self._lock:
                    self._away.discard(name)
                self.turns.look()
            # Another process tells nobody when it lets go.
            self._called.wait(LOOK if self._away else None)

    def _let_go(self) -> None:
        while not self._ends.wait(LOOK):
            try:
                for name in self._claims.wanted():
                    self._release(name, 1.0)
            except Exception as error:
                log.error("sessions could not be let go of: %s", type(error).__name__)

    def _release(self, name: str, seconds: float) -> bool:
        """Save a session and let go of it, when it is its turn; whether that was so."""
        try:
            with self.turns.alone(name, seconds=seconds), self._saving:
                if name not in self._used:
                    return False
                if name in self._memory.sessions:
                    self._save_one(name)
                    self._memory.forget(name, files=False)
                self._forgotten(name)
                return True
        except (Refusal, _EphemeralError):
            return False
        except StoreError as error:
            log.error("a session could not be saved: %s", type(error).__name__)
            return False

    def _forgotten(self, name: str) -> None:
        with self._lock:
            self._used.pop(name, None)
            self._changed.pop(name, None)
        self._claims.free(name)

    def _load(self, name: str) -> None:
        while True:
            try:
                self._memory.load(self._path(name), key=self._key)
                return
            except ConfigError:
                if not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Let go of the session that was not asked for longest; whether there was one."""
        with self._lock:
            others = sorted(self._used, key=self._used.__getitem__)
        return any(self._release(one, 0.0) for one in others)

    def _path(self, name: str) -> Path:
        return self._root / file_name(name)


class _EphemeralError(Exception):
    """A session that is never saved."""


def require_shared(root: Path) -> None:
    """Raises `ConfigError` for a folder in which something else is than shared sessions."""
    try:
        wrong = [
            path.name for path in root.iterdir() if path.name[0] != "." and "@" not in path.name
        ]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{root}: {error.strerror or error}") from None
    if wrong:
        raise ConfigError(f"{root}: a folder of shared sessions expected, or a new one; in it is "
                          f"{wrong[0][:80]}")  # fmt: skip


def _files() -> int:
    """How many files this process may have open."""
    import resource  # no such thing on Windows, where there are no saved memories either

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def _homed(name: str) -> bool:
    """Whether a session has a home: those that are made for one answer have none."""
    return "//" not in name
