"""Data files that are written: in a stream, with their checksum, flushed while the next begins.

The safetensors package writes such a file, too, but only with all of it in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cmr.memory.store.folder import new_name
from cmr.memory.store.form import DTYPE_NAMES, HASH, Part, dump
from cmr.memory.store.vault import Vault

ALIGNMENT = 8
_PIECE = 4 << 20
# Below this, handing the hash to another thread costs more than it saves.
_SMALL = 64 << 10
# Pieces that are kept until they are hashed.
_WAITING = 4
# Files whose bytes are on their way to the disk while the next one is written.
_UNSYNCED = 2


class DataWriter:
    """Writes data files one after the other; left without an error, all of them are on the disk."""

    def __init__(self, folder: Path, vault: Vault | None) -> None:
        self._folder, self._vault = folder, vault
        self._hashing = ThreadPoolExecutor(1)
        self._syncing = ThreadPoolExecutor(_UNSYNCED)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> DataWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._hashing.shutdown()
        self._syncing.shutdown()
        if kind is None:
            for flushed in self._pending:
                flushed.result()

    def put(
        self,
        role: str,
        parts: Mapping[str, Part],
        rows: int,
        rows_of: Callable[[str], torch.Tensor],
    ) -> tuple[str, int, str]:
        """Writes a data file of some tensors; returns its name, bytes and checksum."""
        path = self._folder / new_name(role, self._vault is not None)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        fd = os.open(path, flags, 0o600)
        try:
            pieces: Iterator[Any] = _pieces(parts, rows, rows_of)
            if self._vault is not None:
                pieces = self._vault.seal(path.name, pieces)
            size, digest = self._stream(fd, pieces)
        except BaseException:
            os.close(fd)
            raise
        # A disk that is slower than the writing must not be left ever further behind.
        if len(self._pending) >= _UNSYNCED:
            self._pending.pop(0).result()
        self._pending.append(self._syncing.submit(_flush, fd))
        return path.name, size, digest

    def _stream(self, fd: int, pieces: Iterator[Any]) -> tuple[int, str]:
        """Writes buffers of bytes; their checksum is counted in another thread meanwhile."""
        digest, size = hashlib.new(HASH), 0
        waiting: deque[Future[None]] = deque()
        for piece in pieces:
            whole = memoryview(piece).cast("B")
            for at in range(0, len(whole), _PIECE):
                part = whole[at : at + _PIECE]
                size += len(part)
                if len(part) < _SMALL and not waiting:
                    digest.update(part)
                else:
                    waiting.append(self._hashing.submit(digest.update, part))
                _write_all(fd, part)
                if len(waiting) > _WAITING:
                    waiting.popleft().result()
        for hashed in waiting:
            hashed.result()
        return size, digest.hexdigest()


def _pieces(
    parts: Mapping[str, Part], rows: int, rows_of: Callable[[str], torch.Tensor]
) -> Iterator[Any]:
    """The bytes of a safetensors file: its header, then tensor after tensor."""
    # Wide data types come first, so every tensor starts at a multiple of its item size.
    order = sorted(parts, key=lambda name: (-parts[name].dtype.itemsize, name))
    table: dict[str, Any] = {}
    begin = 0
    for name in order:
        part = parts[name]
        end = begin + rows * part.nbytes
        table[name] = {
            "dtype": DTYPE_NAMES[part.dtype],
            "shape": [rows, *part.shape],
            "data_offsets": [begin, end],
        }
        begin = end
    text = dump(table)
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        flat = rows_of(name).detach().contiguous().reshape(-1).view(torch.uint8)
        data = memoryview(flat.numpy())  # type: ignore[arg-type]
        if data.nbytes:
            yield data


def _write_all(fd: int, part: memoryview) -> None:
    while part:
        part = part[os.write(fd, part) :]


def _flush(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
