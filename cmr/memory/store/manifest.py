"""The manifest: what a save consists of, checked field by field before anything else is opened."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from cmr.errors import CorruptMemoryError, MemoryKeyError, NewerFormatError
from cmr.memory.store.folder import MANIFEST, Folder, read_whole
from cmr.memory.store.form import (
    DTYPE_NAMES,
    DTYPES,
    HASH,
    MAX_BYTES,
    MAX_DIMS,
    NAME,
    Kind,
    Part,
    check_plain,
    corrupt,
    dump,
    parse,
    take,
    take_size,
)
from cmr.memory.store.vault import Key, Vault, decode

FORMAT, VERSION = "cmr-memory", 2
# About 8 bytes a block: 30 million blocks.
MAX_MANIFEST = 256 << 20
# The row of a block that is no longer part of the memory.
DEAD = -1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
# Columns that version 1 did not have, with the value that its blocks get.
ADDED_IN_2: dict[str, tuple[str, int | float]] = {
    "kind": ("I64", 0),
    "column.time": ("F64", 0.0),
    "column.flags": ("I64", 0),
    "column.tier": ("I64", 0),
}


class Shard(NamedTuple):
    """A data file of blocks of one kind: its name, size and checksum as it is on the disk.

    `numbers` has the block's number of each row, `DEAD` for rows that are no longer used.
    """

    file: str
    bytes: int
    sha256: str
    kind: int
    numbers: list[int]


class ColumnFile(NamedTuple):
    """The data file of columns: its name, size and checksum, rows, and the tensors in it.

    `fill` has columns that are not in it and have one value for all blocks.
    """

    file: str
    bytes: int
    sha256: str
    rows: int
    parts: Mapping[str, Part]
    fill: Mapping[str, tuple[torch.dtype, int | float]]


@dataclass
class Manifest:
    """One complete save.

    `version` is that of the file before it was migrated, `checksum` that of the file it was read
    from (empty for a new one); `vault` opens the data files, None where they are in the clear.
    """

    id: str
    library: str
    kinds: list[Kind]
    shards: list[Shard]
    columns: ColumnFile
    header: dict[str, Any]
    vault: Vault | None = field(default=None, repr=False)
    version: int = VERSION
    checksum: str = ""

    @property
    def files(self) -> list[str]:
        """Names of all data files."""
        return [self.columns.file, *(shard.file for shard in self.shards)]

    def encode(self) -> bytes:
        """The bytes of manifest.json."""
        columns = self.columns._asdict() | {"parts": _write_parts(self.columns.parts)}
        columns["fill"] = {
            name: {"dtype": DTYPE_NAMES[dtype], "value": value}
            for name, (dtype, value) in self.columns.fill.items()
        }
        body: dict[str, Any] = {
            "format": FORMAT,
            "format_version": VERSION,
            "id": self.id,
            "library": self.library,
            "kinds": [{"name": k.name, "parts": _write_parts(k.parts)} for k in self.kinds],
            "shards": [shard._asdict() for shard in self.shards],
            "columns": columns,
            "header": self.header,
        }
        text = dump(body | {HASH: _digest(body)})
        if self.vault is None:
            return text
        sealed = b"".join(self.vault.seal(MANIFEST, [text]))
        return dump(
            {
                "format": FORMAT,
                "format_version": VERSION,
                "encryption": self.vault.envelope,
                "sealed": base64.b64encode(sealed).decode("ascii"),
            }
        )


def load(folder: Folder, key: Key | Vault | None, either: bool = False) -> Manifest:
    """Reads and checks the manifest of a folder; raises as `Saved.open` says.

    A vault as `key` opens it without the user's key; `either`: a key may be given for a memory in
    the clear, too.
    """
    folder.require()
    where = folder.manifest
    raw = read_whole(where, MAX_MANIFEST)
    table = parse(raw, where)
    _version(table, where)
    vault = None
    if "encryption" in table:
        if key is None:
            raise MemoryKeyError(f"{where}: the memory is encrypted, give its key")
        vault = key if isinstance(key, Vault) else Vault.open(table["encryption"], key, where)
        text = vault.unseal_text(MANIFEST, decode(table, "sealed", where), where)
        table = parse(text, where)
        _version(table, where)
    elif key is not None and not either:
        raise MemoryKeyError(f"{where}: the memory is not encrypted, but a key was given")
    version = table["format_version"]
    if version == 1:
        table = _from_1(table, where)
    else:
        digest = take(table, HASH, str, where)
        del table[HASH]
        if digest != _digest(table):
            corrupt(where, "its text does not have the checksum that it names")
    found = _read(table, folder)
    found.vault, found.version = vault, version
    found.checksum = checksum(raw)
    return found


def _version(table: Any, where: object) -> None:
    """Raises unless the table is a manifest of a version that is known here."""
    if take(table, "format", str, where) != FORMAT:
        corrupt(where, f"'format': {FORMAT!r} expected, got something else")
    version = take(table, "format_version", int, where)
    if version > VERSION:
        raise NewerFormatError(
            f"{where}: format version {VERSION} or older expected, got {str(version)[:20]}: "
            "a newer version of cmr wrote it"
        )
    if version < 1:
        corrupt(where, f"a format version from 1 on expected, got {str(version)[:20]}")


def _from_1(table: dict[str, Any], where: object) -> dict[str, Any]:
    """What a manifest of version 1 says, as version 2 says it."""
    # In memory only: a folder keeps the version that it was saved with until it is saved again.
    if "kinds" in table:
        corrupt(where, "'kinds' in a manifest of version 1")
    table["kinds"] = [{"name": "full", "parts": take(table, "parts", dict, where)}]
    del table["parts"]
    for shard in take(table, "shards", list, where):
        if not isinstance(shard, dict):
            corrupt(where, f"an object expected in 'shards', got {type(shard).__name__}")
        shard["kind"] = 0
    columns = take(table, "columns", dict, where)
    present = take(columns, "parts", dict, where)
    columns["fill"] = {
        name: {"dtype": dtype, "value": value}
        for name, (dtype, value) in ADDED_IN_2.items()
        if name not in present
    }
    return table


def checksum(raw: bytes) -> str:
    """The checksum by which a manifest file is known again."""
    return hashlib.new(HASH, raw).hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    try:
        return hashlib.new(HASH, dump(body)).hexdigest()
    except RecursionError:
        raise CorruptMemoryError("the header is nested too deeply") from None


def _write_parts(parts: Mapping[str, Part]) -> dict[str, Any]:
    return {
        name: {"dtype": DTYPE_NAMES[part.dtype], "shape": list(part.shape)}
        for name, part in parts.items()
    }


def _read(table: Any, folder: Folder) -> Manifest:
    where = folder.manifest
    identity = take(table, "id", str, where)
    if not _ID.fullmatch(identity):
        corrupt(where, f"'id': 32 hexadecimal digits expected, got {identity[:40]!r}")
    kinds = []
    for entry in take(table, "kinds", list, where):
        name = take(entry, "name", str, where)
        kinds.append(Kind(_name(name, where), _read_parts(entry, where)))
    if len({kind.name for kind in kinds}) != len(kinds):
        corrupt(where, "two kinds have the same name")
    shards = [_read_shard(e, len(kinds), where) for e in take(table, "shards", list, where)]
    entry = take(table, "columns", dict, where)
    columns = ColumnFile(
        *_read_file(entry, where),
        take_size(entry, "rows", MAX_BYTES, where),
        _read_parts(entry, where),
        _read_fill(entry, where),
    )
    header = take(table, "header", dict, where)
    try:
        check_plain(header)
    except ValueError as error:
        corrupt(where, str(error))
    found = Manifest(identity, take(table, "library", str, where), kinds, shards, columns, header)
    # A name with a slash or a dot in it could lead out of the folder.
    for name in found.files:
        folder.file(name)
    if len(set(found.files)) != len(found.files):
        corrupt(where, "a data file is named twice")
    return found


def _read_file(entry: Any, where: object) -> tuple[str, int, str]:
    file, digest = take(entry, "file", str, where), take(entry, HASH, str, where)
    if not _DIGEST.fullmatch(digest):
        corrupt(where, f"{HASH!r}: 64 hexadecimal digits expected, got {digest[:80]!r}")
    return file, take_size(entry, "bytes", MAX_BYTES, where), digest


def _read_shard(entry: Any, kinds: int, where: object) -> Shard:
    file, size, digest = _read_file(entry, where)
    kind = take_size(entry, "kind", kinds - 1, where)
    numbers = take(entry, "numbers", list, where)
    if not all(type(x) is int and DEAD <= x < 1 << 63 for x in numbers):
        corrupt(where, f"'numbers' of {file[:80]!r}: block numbers from 0 on expected")
    return Shard(file, size, digest, kind, numbers)


def _name(name: str, where: object) -> str:
    if not NAME.fullmatch(name):
        corrupt(where, f"a name of letters, digits, '_', '.', '-' expected, got {name[:80]!r}")
    return name


def _dtype(entry: Any, where: object) -> torch.dtype:
    name = take(entry, "dtype", str, where)
    if name not in DTYPES:
        corrupt(where, f"'dtype': one of {', '.join(DTYPES)} expected, got {name[:40]!r}")
    return DTYPES[name]


def _read_parts(entry: Any, where: object) -> dict[str, Part]:
    parts = {}
    for name, about in take(entry, "parts", dict, where).items():
        shape = take(about, "shape", list, where)
        if len(shape) > MAX_DIMS or not all(type(x) is int and 0 <= x < 1 << 40 for x in shape):
            corrupt(where, f"'shape': up to {MAX_DIMS} sizes expected, got {str(shape)[:80]}")
        # Sizes of 0 counted as 1: strides are counted so, too.
        if math.prod(max(size, 1) for size in shape) > MAX_BYTES:
            corrupt(where, f"'shape': fewer than 2^62 values expected, got {shape}")
        parts[_name(name, where)] = Part(_dtype(about, where), tuple(shape))
    return parts


def _read_fill(entry: Any, where: object) -> dict[str, tuple[torch.dtype, int | float]]:
    fill: dict[str, tuple[torch.dtype, int | float]] = {}
    for name, about in take(entry, "fill", dict, where).items():
        dtype = _dtype(about, where)
        whole = not dtype.is_floating_point
        value: int | float = take(about, "value", int if whole else float, where)
        if whole and not 0 <= value <= (1 if dtype == torch.bool else torch.iinfo(dtype).max):
            corrupt(where, f"'value' of {name[:80]!r}: one that fits {dtype} expected")
        fill[_name(name, where)] = (dtype, value)
    return fill
