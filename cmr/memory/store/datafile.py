"""Data files in the clear or encrypted: written in a stream with their checksum, read by range."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from types import TracebackType
from typing import Any

from cmr.errors import StoreBusyError
from cmr.memory.store import vault as _vault
from cmr.memory.store.folder import flock, open_file
from cmr.memory.store.text import corrupt
from cmr.memory.store.vault import Vault

# Fastest of what hashlib has and is trusted, on processors with instructions for it.
HASH = "sha256"
_PIECE = 4 << 20
# Below this, handing the hash to another thread costs more than it saves.
_SMALL = 64 << 10
# Pieces that are kept until they are hashed.
_WAITING = 4
# More pieces than this are left to the system's own read-ahead.
_MAX_ADVICE = 64


def write(
    path: Path, pieces: Iterable[Any], vault: Vault | None, hashing: Executor
) -> tuple[int, int, str]:
    """Writes a new file; returns its open descriptor (not yet flushed), bytes and checksum.

    Args:
        path: where; nothing may be there.
        pieces: buffers of bytes, written one after the other.
        vault: encrypts them if given.
        hashing: one thread, in which the checksum is counted while bytes are written.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        digest, size = hashlib.new(HASH), 0
        waiting: deque[Future[None]] = deque()
        for piece in vault.seal(path.name, pieces) if vault else pieces:
            whole = memoryview(piece).cast("B")
            for at in range(0, len(whole), _PIECE):
                part = whole[at : at + _PIECE]
                size += len(part)
                if len(part) < _SMALL and not waiting:
                    digest.update(part)
                    _write_all(fd, part)
                else:
                    waiting.append(hashing.submit(digest.update, part))
                    _write_all(fd, part)
                    if len(waiting) > _WAITING:
                        waiting.popleft().result()
        for hashed in waiting:
            hashed.result()
        return fd, size, digest.hexdigest()
    except BaseException:
        os.close(fd)
        raise


def _write_all(fd: int, part: memoryview) -> None:
    while part:
        part = part[os.write(fd, part) :]


def checksum(path: Path, size: int) -> str:
    """The checksum of a file that must have `size` bytes."""
    fd = open_file(path)
    try:
        if (found := os.fstat(fd).st_size) != size:
            corrupt(path, f"{size} bytes expected, got {found}")
        digest, buffer = hashlib.new(HASH), memoryview(bytearray(min(size, 1 << 20) or 1))
        left = size
        while left:
            got = os.readv(fd, [buffer[:left]])
            if not got:
                corrupt(path, f"{size} bytes expected, got {size - left}")
            digest.update(buffer[:got])
            left -= got
        return digest.hexdigest()
    finally:
        os.close(fd)


class DataFile:
    """An open data file; use it in a `with` statement.

    While it is open, or a buffer of it is in use, nobody can erase the file.

    Args:
        path: where it is.
        size: the bytes that it must have.
        vault: opens it where it is encrypted.

    Attributes:
        size: bytes of the file as it was before encryption.

    Raises:
        CorruptMemoryError: it is missing, no regular file or of another size.
        StoreBusyError: it is being erased.
    """

    def __init__(self, path: Path, size: int, vault: Vault | None) -> None:
        self.path = path
        self._unsealer: _vault.Unsealer | None = None
        self._fd = open_file(path)
        try:
            if (found := os.fstat(self._fd).st_size) != size:
                corrupt(path, f"{size} bytes expected, got {found}")
            if not flock(self._fd, exclusive=False):
                raise StoreBusyError(f"{path}: is being erased")
            self.size = size
            if vault is not None:
                self.size = _vault.plain_size(size)
                head = os.pread(self._fd, _vault.HEAD, 0)
                if self.size < 0 or not head.startswith(_vault.MAGIC):
                    corrupt(path, "an encrypted file expected, got something else")
                salt = head[len(_vault.MAGIC) :]
                self._unsealer = vault.unseal(path.name, salt, path)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def read(self, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end`."""
        if self._unsealer is None:
            data = os.pread(self._fd, end - begin, begin)
        else:
            data = b"".join(
                chunk[max(begin - at, 0) : end - at] for at, chunk in self._chunks([(begin, end)])
            )
        if len(data) != end - begin:
            corrupt(self.path, f"{end} bytes expected, the file ends at {begin + len(data)}")
        return data

    def buffer(self, ranges: Sequence[tuple[int, int]]) -> Any:
        """A buffer of the whole file in which at least the `ranges` hold its bytes.

        In the clear: the mapped file, private to the process, read from the disk when touched.
        Encrypted: memory of the file's size of which only what is asked for is taken.
        """
        if self._unsealer is None:
            # Mapped private and writable, because torch warns of memory that it must not write.
            mapped = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY)
            near = _merged(ranges)
            if hasattr(os, "posix_fadvise") and len(near) <= _MAX_ADVICE:
                for begin, end in near:
                    os.posix_fadvise(self._fd, begin, end - begin, os.POSIX_FADV_WILLNEED)
            return mapped
        plain = bytearray(self.size)
        for at, chunk in self._chunks(ranges):
            plain[at : at + len(chunk)] = chunk
        return plain

    def _chunks(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """Where they start and the plain bytes of the chunks that touch any of the ranges."""
        assert self._unsealer is not None
        last = max(self.size - 1, 0) // _vault.CHUNK
        wanted: set[int] = set()
        for begin, end in ranges:
            wanted.update(range(begin // _vault.CHUNK, -(-end // _vault.CHUNK)))
        step = _vault.CHUNK + _vault.TAG
        for number in sorted(wanted):
            data = os.pread(self._fd, step, _vault.HEAD + number * step)
            yield number * _vault.CHUNK, self._unsealer.open(number, number == last, data)


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, those that touch or lie within a page of each other as one."""
    out: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if out and begin <= out[-1][1] + mmap.PAGESIZE:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((begin, end))
    return out
