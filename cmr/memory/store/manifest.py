"""The manifest: what a save consists of, checked field by field before anything else is opened."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from cmr.errors import CorruptMemoryError, MemoryKeyError, NewerFormatError
from cmr.memory.store import schema
from cmr.memory.store.fields import Check, anything, hold
from cmr.memory.store.folder import MANIFEST, Folder, read_whole
from cmr.memory.store.form import (
    DTYPE_NAMES,
    DTYPES,
    HASH,
    Kind,
    Part,
    check_plain,
    corrupt,
    dump,
    parse,
    take,
)
from cmr.memory.store.vault import Key, Vault, decode

FORMAT, VERSION = "cmr-memory", 4
# About 8 bytes a block: 30 million blocks.
MAX_MANIFEST = 256 << 20
# The row of a block that is no longer part of the memory.
DEAD = -1
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


def load(
    folder: Folder, key: Key | Vault | None, either: bool = False, header: Check = anything
) -> Manifest:
    """Reads and checks the manifest of a folder; raises as `Saved.open` says.

    A vault as `key` opens it without the user's key; `either`: a key may be given for a memory in
    the clear, too. `header` is what its header is held to.
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
    if version < 3:
        _from_2(table)
    if version < 4:
        _from_3(table)
    found = _read(table, folder, header)
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


def _from_2(table: dict[str, Any]) -> None:
    """Completes the header of an attached model's memory, as far as it is one."""
    header = table.get("header")
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        return
    # Before there were calibrations, and before headers said so.
    header.setdefault("index", None)
    header.setdefault("calibrated", header["index"] is not None)
    sessions = header.get("sessions")
    for session in sessions if isinstance(sessions, list) else ():
        if isinstance(session, dict):
            session.setdefault("adapters", {})
            session.setdefault("uids", [])
    schema.forget_paths(header["config"])


def _from_3(table: dict[str, Any]) -> None:
    """Completes the sessions in a header: of none was said where its texts stand and go on."""
    header = table.get("header")
    sessions = header.get("sessions") if isinstance(header, dict) else None
    for session in sessions if isinstance(sessions, list) else ():
        if isinstance(session, dict):
            session.setdefault("texts", [])
            session.setdefault("last", None)


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


def _read(table: Any, folder: Folder, header: Check) -> Manifest:
    where = folder.manifest
    hold(schema.MANIFEST, table, where)
    hold(header, table["header"], where, under="header")
    try:
        check_plain(table["header"])
    except ValueError as error:
        corrupt(where, str(error))
    entry = table["columns"]
    fill = {name: (DTYPES[about["dtype"]], about["value"]) for name, about in entry["fill"].items()}
    return Manifest(
        table["id"],
        table["library"],
        [Kind(kind["name"], _read_parts(kind)) for kind in table["kinds"]],
        [Shard(**shard) for shard in table["shards"]],
        ColumnFile(**entry | {"parts": _read_parts(entry), "fill": fill}),
        table["header"],
    )


def _read_parts(entry: Any) -> dict[str, Part]:
    return {
        name: Part(DTYPES[about["dtype"]], tuple(about["shape"]))
        for name, about in entry["parts"].items()
    }
