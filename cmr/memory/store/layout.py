"""The inside of a data file: the safetensors format, written in a stream and read with suspicion.

Eight bytes (little endian) say how long the header is, the header is JSON that maps a tensor's name
to data type, shape and byte range, the tensors follow without gaps. The safetensors package opens
such a file; it cannot write one without holding all of it, nor check a header against what is
expected before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from cmr.memory.store.form import DTYPE_NAMES, Part
from cmr.memory.store.text import corrupt, dump, parse, take

# Far above any header of ours: about 100 bytes a tensor.
MAX_HEADER = 16 << 20
ALIGNMENT = 8


class Span(NamedTuple):
    """Where a tensor lies in a data file: data type, shape, first byte of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, counted along the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def head(parts: Mapping[str, Part], rows: int) -> tuple[bytes, list[str]]:
    """The bytes before the first tensor, and the order in which the tensors follow.

    Wide data types come first, so every tensor starts at a multiple of its item size.
    """
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
    return len(text).to_bytes(8, "little") + text, order


def spans(
    read: Callable[[int, int], bytes],
    size: int,
    parts: Mapping[str, Part],
    rows: int,
    where: object,
) -> dict[str, Span]:
    """Where each expected tensor lies, after the header was checked against what is expected.

    Args:
        read: gives bytes `begin` to `end` of the file.
        size: bytes of the file.
        parts: the tensors that must be there, and no other.
        rows: their first dimension.
        where: names the file in errors.

    Raises:
        CorruptMemoryError: the header is not of that form or does not describe these tensors.
    """
    if size < 8:
        corrupt(where, f"at least 8 bytes expected, got {size}")
    length = int.from_bytes(read(0, 8), "little")
    if length > min(size - 8, MAX_HEADER):
        corrupt(where, f"a header of at most {min(size - 8, MAX_HEADER)} bytes, got {length}")
    table = parse(read(8, 8 + length), where)
    if not isinstance(table, dict):
        corrupt(where, "the header is no JSON object")
    table.pop("__metadata__", None)
    if set(table) != set(parts):
        missing, more = sorted(set(parts) - set(table)), sorted(set(table) - set(parts))
        corrupt(where, f"tensors missing: {missing[:5]}, not expected: {more[:5]}")
    found: dict[str, Span] = {}
    covered: list[tuple[int, int]] = []
    for name, part in parts.items():
        entry, about = table[name], f"{where}, tensor {name!r}"
        dtype, shape = take(entry, "dtype", str, about), take(entry, "shape", list, about)
        offsets = take(entry, "data_offsets", list, about)
        if dtype != DTYPE_NAMES[part.dtype]:
            corrupt(about, f"data type {DTYPE_NAMES[part.dtype]} expected, got {dtype[:40]!r}")
        if shape != [rows, *part.shape]:
            corrupt(about, f"shape {[rows, *part.shape]} expected, got {str(shape)[:80]}")
        if len(offsets) != 2 or any(type(x) is not int for x in offsets):
            corrupt(about, f"two offsets expected, got {str(offsets)[:80]}")
        begin, end = offsets
        if not 0 <= begin <= end <= size - 8 - length or end - begin != rows * part.nbytes:
            corrupt(
                about, f"{rows * part.nbytes} bytes within the file expected, got {begin}..{end}"
            )
        start = 8 + length + begin
        if start % part.dtype.itemsize:
            corrupt(about, f"starts at byte {start}, no multiple of {part.dtype.itemsize}")
        covered.append((begin, end))
        found[name] = Span(part.dtype, (rows, *part.shape), start)
    at = 0
    for begin, end in sorted(covered):
        if begin != at:
            corrupt(where, f"tensors side by side expected, got a gap or an overlap at {at}")
        at = end
    if at != size - 8 - length:
        corrupt(where, f"{8 + length + at} bytes expected, got {size}")
    return found


def view(buffer: Any, span: Span, first: int, count: int) -> torch.Tensor:
    """Rows `first` to `first + count` of a tensor in a buffer of the whole file: no copy."""
    shape = (count, *span.shape[1:])
    if not math.prod(shape):
        return torch.empty(shape, dtype=span.dtype)
    flat = torch.frombuffer(
        buffer,
        dtype=span.dtype,
        count=math.prod(shape),
        offset=span.begin + first * span.row_bytes,
    )
    return flat.view(shape)


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]
