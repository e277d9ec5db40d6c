"""A data file that is read: by range, in the clear or encrypted, with suspicion.

The inside is the safetensors format: eight bytes (little endian) say how long the header is, the
header is JSON that maps a tensor's name to data type, shape and byte range, the tensors follow
without gaps. The safetensors package opens such a file; it cannot check a header against what is
expected before it is used.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from cmr._fork import close, own
from cmr.errors import StoreBusyError
from cmr.memory.store import vault as _vault
from cmr.memory.store.folder import flock, open_file
from cmr.memory.store.form import DTYPE_NAMES, HASH, Part, corrupt, parse, take
from cmr.memory.store.vault import Vault

# Far above any header of ours: about 100 bytes a tensor.
MAX_HEADER = 16 << 20
# More pieces than this are left to the system's own read-ahead.
_MAX_ADVICE = 64


class Span(NamedTuple):
    """Where a tensor lies in a data file: data type, shape, first byte of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, counted along the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def view(self, buffer: Any, first: int, count: int) -> torch.Tensor:
        """Rows `first` to `first + count` in a buffer of the whole file: no copy."""
        shape = (count, *self.shape[1:])
        if not math.prod(shape):
            return torch.empty(shape, dtype=self.dtype)
        begin = self.begin + first * self.row_bytes
        flat = torch.frombuffer(buffer, dtype=self.dtype, count=math.prod(shape), offset=begin)
        return flat.view(shape)


def check_sum(path: Path, size: int, wanted: str) -> None:
    """Raises CorruptMemoryError unless a file has `size` bytes and the checksum `wanted`."""
    fd = open_file(path)
    try:
        if (found := os.fstat(fd).st_size) != size:
            corrupt(path, f"{size} bytes expected, got {found}")
        # Read piece by piece: a file may be larger than the memory that is free.
        digest, buffer = hashlib.new(HASH), memoryview(bytearray(min(size, 1 << 20) or 1))
        left = size
        while left:
            got = os.readv(fd, [buffer[:left]])
            if not got:
                corrupt(path, f"{size} bytes expected, got {size - left}")
            digest.update(buffer[:got])
            left -= got
    finally:
        os.close(fd)
    if (got_sum := digest.hexdigest()) != wanted:
        corrupt(path, f"checksum {wanted[:12]}... expected, got {got_sum[:12]}...")


class DataFile:
    """An open data file, which must have `size` bytes; use it in a `with` statement.

    While it is open, or a buffer of it is in use, nobody can erase the file. Its `size` from then
    on is that of the file as it was before encryption.
    """

    def __init__(self, path: Path, size: int, vault: Vault | None) -> None:
        self.path = path
        self._unsealer: _vault.Unsealer | None = None
        self._fd = own(open_file(path))
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
            close(self._fd)
            raise

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close(self._fd)

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
        """A buffer of the whole file in which at least the `ranges` hold its bytes."""
        if self._unsealer is None:
            # Mapped private and writable, because torch warns of memory that it must not write.
            mapped = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY)
            near = _merged(ranges)
            if hasattr(os, "posix_fadvise") and len(near) <= _MAX_ADVICE:
                for begin, end in near:
                    os.posix_fadvise(self._fd, begin, end - begin, os.POSIX_FADV_WILLNEED)
            return mapped
        # Memory of the file's size, of which the system gives only what is written to.
        plain = bytearray(self.size)
        for at, chunk in self._chunks(ranges):
            plain[at : at + len(chunk)] = chunk
        return plain

    def spans(self, parts: Mapping[str, Part], rows: int) -> dict[str, Span]:
        """Where each expected tensor lies, after the header was checked against `parts`.

        These tensors must be there and no other, `rows` long each, side by side to the file's end.
        """
        size, where = self.size, self.path
        if size < 8:
            corrupt(where, f"at least 8 bytes expected, got {size}")
        length = int.from_bytes(self.read(0, 8), "little")
        if length > min(size - 8, MAX_HEADER):
            corrupt(where, f"a header of at most {min(size - 8, MAX_HEADER)} bytes, got {length}")
        table = parse(self.read(8, 8 + length), where)
        if not isinstance(table, dict):
            corrupt(where, "the header is no JSON object")
        table.pop("__metadata__", None)
        if set(table) != set(parts):
            missing, more = sorted(set(parts) - set(table)), sorted(set(table) - set(parts))
            corrupt(where, f"tensors missing: {missing[:5]}, not expected: {more[:5]}")
        found: dict[str, Span] = {}
        covered: list[tuple[int, int]] = []
        for name, part in parts.items():
            about = f"{where}, tensor {name!r}"
            begin, end = _offsets(table[name], part, rows, size - 8 - length, about)
            start = 8 + length + begin
            # Memory of the file is looked at as numbers of this type, which must lie evenly in it.
            if start % part.dtype.itemsize:
                corrupt(about, f"starts at byte {start}, no multiple of {part.dtype.itemsize}")
            covered.append((begin, end))
            found[name] = Span(part.dtype, (rows, *part.shape), start)
        # No byte of the file may be without a tensor, or belong to two: nothing can hide in it.
        at = 0
        for begin, end in sorted(covered):
            if begin != at:
                corrupt(where, f"tensors side by side expected, got a gap or an overlap at {at}")
            at = end
        if at != size - 8 - length:
            corrupt(where, f"{8 + length + at} bytes expected, got {size}")
        return found

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


def _offsets(entry: Any, part: Part, rows: int, room: int, about: str) -> tuple[int, int]:
    """Where the header says that a tensor begins and ends, if it says what is expected of it."""
    dtype, shape = take(entry, "dtype", str, about), take(entry, "shape", list, about)
    offsets = take(entry, "data_offsets", list, about)
    if dtype != DTYPE_NAMES[part.dtype]:
        corrupt(about, f"data type {DTYPE_NAMES[part.dtype]} expected, got {dtype[:40]!r}")
    if shape != [rows, *part.shape]:
        corrupt(about, f"shape {[rows, *part.shape]} expected, got {str(shape)[:80]}")
    if len(offsets) != 2 or any(type(x) is not int for x in offsets):
        corrupt(about, f"two offsets expected, got {str(offsets)[:80]}")
    begin, end = offsets
    nbytes = rows * part.nbytes
    if not 0 <= begin <= end <= room or end - begin != nbytes:
        corrupt(about, f"{nbytes} bytes within the file expected, got {begin}..{end}")
    return begin, end


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, those that touch or lie within a page of each other as one."""
    out: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if out and begin <= out[-1][1] + mmap.PAGESIZE:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((begin, end))
    return out
