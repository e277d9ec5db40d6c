"""The folder of a saved memory: which files it may hold, who may write, how a save takes effect.

A save writes its files into a folder inside the folder, flushes each to the disk, moves them to
their places and at last puts the new manifest in the place of the old one: that single step makes
the save valid. Whatever happens before it, the old manifest and all its files are still there.
Files that no manifest names are removed afterwards, or by whoever opens the folder next.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmr._fork import close, close_lost, own
from cmr._frames import user_frame
from cmr.errors import MemoryNotFoundError, StoreBusyError, StoreError
from cmr.memory.store.form import corrupt

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

MANIFEST, STAGING, LOCK = "manifest.json", ".writing", ".lock"
# A single component of lower-case letters, digits and dashes: no dot but the last, no slash.
FILE_NAME = re.compile(r"[a-z0-9][a-z0-9\-]{0,63}\.(safetensors|sealed)")
# The names that we give, and so may remove when no manifest names them.
OUR_NAME = re.compile(r"(blocks|columns)-[0-9a-f]{16}\.(safetensors|sealed)")
# What is still to be forgotten, see `outstanding`; `.part` while it is written.
NOTE = re.compile(r"\.forget-[0-9a-f]{16}\.json")
_NOTE_PART = re.compile(r"\.forget-[0-9a-f]{16}\.part")

# A symbolic link is refused, and a pipe in a file's place does not block.
SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_PIECE = 1 << 20


def new_name(role: str, sealed: bool) -> str:
    """A name that no file has yet: a role (blocks, columns), 64 random bits, an ending."""
    return f"{role}-{secrets.token_hex(8)}.{'sealed' if sealed else 'safetensors'}"


def is_ours(name: str) -> bool:
    """Whether a file of this name may be what a save has left behind."""
    known = name in (STAGING, LOCK)
    return known or any(form.fullmatch(name) for form in (OUR_NAME, NOTE, _NOTE_PART))


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file (else CorruptMemoryError), never of what a link points to."""
    try:
        fd = os.open(path, flags | SAFELY)
    except OSError as error:
        corrupt(path, f"a regular file expected ({os.strerror(error.errno or 0)})")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        corrupt(path, "a regular file expected, got something else")
    return fd


def read_whole(path: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes, as it was at one moment."""
    for _ in range(10):
        fd = open_file(path)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                corrupt(path, f"at most {limit} bytes expected, got {size}")
            with os.fdopen(os.dup(fd), "rb") as file:
                data = file.read(size)
            # A file that was replaced meanwhile may have been erased under our hands.
            if os.fstat(fd).st_nlink:
                return data
        finally:
            os.close(fd)
    raise StoreBusyError(f"{path}: replaced again and again while it was read")


def sync_folder(path: Path) -> None:
    """Makes what was created, renamed or removed in a folder last."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flock(fd: int, exclusive: bool) -> bool:
    """Takes a lock on an open file without waiting; False where another one is in the way."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: readers do without, writers do not
        return not exclusive
    return True


def lock(fd: int) -> bool:
    """Takes a lock on an open file for this one alone, without waiting; False: another has it."""
    if flock(fd, exclusive=True):
        return True
    # A call of this process that was interrupted may hold it still.
    close_lost()
    return flock(fd, exclusive=True)


def erase(fd: int) -> None:
    """Overwrites an open file with zeros and flushes them to the disk."""
    left = os.fstat(fd).st_size
    zeros = bytes(min(left, _PIECE))
    os.lseek(fd, 0, os.SEEK_SET)
    while left:
        left -= os.write(fd, zeros[:left])
    os.fsync(fd)


class Folder:
    """The folder of one saved memory; StoreError where the system has no POSIX locks."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if fcntl is None:
            raise StoreError("saved memories need the files and locks of a POSIX system")
        self.path = Path(path)
        self._writer = 0

    @property
    def manifest(self) -> Path:
        """The manifest's path."""
        return self.path / MANIFEST

    @property
    def staging(self) -> Path:
        """The folder in which files are written before they count."""
        return self.path / STAGING

    def file(self, name: str) -> Path:
        """The path of a data file; a name that is no plain file name of ours is refused."""
        if not FILE_NAME.fullmatch(name):
            corrupt(self.manifest, f"the plain name of a data file expected, got {name[:80]!r}")
        return self.path / name

    def exists(self) -> bool:
        """Whether a manifest is there, whatever it is."""
        return os.path.lexists(self.manifest)

    def names(self) -> list[str]:
        """Names of all that is in it; StoreError where that is not to be had."""
        try:
            return os.listdir(self.path)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be listed ({error.strerror})") from error

    def require(self) -> None:
        """Raises MemoryNotFoundError where there is no saved memory."""
        if not self.exists():
            what = "no manifest.json in it" if self.path.is_dir() else "no such folder"
            raise MemoryNotFoundError(f"no saved memory at {self.path}: {what}")

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The only writer of the folder, which is made if need be; its staging folder is empty."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"a folder expected at {self.path}, got a file") from None
        if not self.exists() and not all(is_ours(name) for name in os.listdir(self.path)):
            raise StoreError(
                f"{self.path} holds no saved memory but other files: give an empty or new folder "
                "to save to"
            )
        flags = os.O_RDWR | os.O_CREAT | SAFELY
        try:
            fd = own(os.open(self.path / LOCK, flags, 0o600), user_frame())
        except OSError as error:
            raise StoreError(
                f"{self.path / LOCK} cannot be opened ({os.strerror(error.errno or 0)})"
            ) from error
        try:
            if not lock(fd):
                raise StoreBusyError(f"{self.path} cannot be locked: another save to it is running")
            # What a save that was killed left there may be text that is to be forgotten.
            self._unstage()
            self.staging.mkdir(mode=0o700)
            self._writer = os.getpid()
            try:
                yield
            finally:
                if self._writer == os.getpid():  # what stands there is the parent's otherwise
                    self._unstage()
        finally:
            close(fd)

    def _unstage(self) -> None:
        """Removes the staging folder; what is left in it is erased first."""
        try:
            names = os.listdir(self.staging)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            corrupt(self.staging, "a folder expected, got something else")
        for name in names:
            self.remove(self.staging / name, overwrite=True)
        self.staging.rmdir()

    def commit(self, names: Iterable[str], manifest: bytes) -> None:
        """Moves finished files out of the staging folder, then makes `manifest` the valid one."""
        if self._writer != os.getpid():
            raise StoreError(f"{self.path}: this save is that of the process that was forked")
        # Under their last names they still count for nothing: no manifest names them.
        for name in names:
            os.rename(self.staging / name, self.path / name)
        staged = self.staging / MANIFEST
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        # The files must be found after a power cut by whoever finds the manifest.
        sync_folder(self.path)
        os.replace(staged, self.manifest)
        sync_folder(self.path)

    def unnamed(self, named: Iterable[str]) -> list[str]:
        """Files of ours that are not among `named`, half a note included."""
        keep, forms = set(named), (OUR_NAME, _NOTE_PART)
        return [n for n in self.names() if n not in keep and any(f.fullmatch(n) for f in forms)]

    def has_leftovers(self, named: Iterable[str]) -> bool:
        """Whether a save that was killed left something, or one is under way."""
        return os.path.lexists(self.staging) or bool(self.unnamed(named))

    def remove(self, path: Path, overwrite: bool) -> None:
        """Removes a file, overwritten with zeros before if asked; a link is only unlinked."""
        if not os.path.lexists(path):
            return
        if overwrite and stat.S_ISREG(os.lstat(path).st_mode):
            fd = own(os.open(path, os.O_WRONLY | SAFELY), user_frame())
            try:
                # Somebody still reads it: it stays until the next save.
                if not lock(fd):
                    return
                erase(fd)
            finally:
                close(fd)
        os.unlink(path)
