"""The folders of a model class: what it remembers, and what it is made of."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from cmr.errors import ConfigError, CorruptMemoryError, MemoryNotFoundError
from cmr.integration.memory import Memory
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.buffer.layers import BufferLimits
from cmr.memory.store.checked import open_memory
from cmr.memory.store.fields import Check, anything, hold, maybe, one_of, table, whole
from cmr.memory.store.folder import read_whole
from cmr.memory.store.form import parse
from cmr.memory.store.schema import NAMES, SETTINGS, SHORT, forget_paths

FORMAT = 1
ABOUT, SEQUENCES = "cmr_model.json", "sequences.json"
MEMORY, BLOCKS, STATES = "cmr_memory", "memory", "buffer"

Key = bytes | str | None

_MOST = 256 << 20
_FORMAT = whole(FORMAT, FORMAT)
_SEQUENCES = table(format=_FORMAT, sequences=NAMES)
_ABOUT = table(
    **{"class": SHORT},
    format=_FORMAT,
    config=SETTINGS,
    output_hidden_size=maybe(whole(1, 1 << 24)),
    buffer=table(**{field.name: anything for field in fields(BufferLimits)}),
    memory_enabled=one_of(True, False),
    memory=maybe(one_of(MEMORY)),
)


def save_memory(
    path: str | os.PathLike[str], memory: Memory, buffer: LayeredMemoryBuffer, key: Key
) -> None:
    """Save blocks and entries to a folder, with the names of the numbers that entries have."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    memory.save(folder / BLOCKS, key=key)
    buffer.save_state(folder / STATES, key=key)
    infos = memory._core.table.infos()
    numbers = {str(info.number): info.name for info in infos if not info.ephemeral}
    _write(folder / SEQUENCES, {"format": FORMAT, "sequences": numbers})


def load_memory(
    path: str | os.PathLike[str], memory: Memory, buffer: LayeredMemoryBuffer, key: Key
) -> int:
    """Take in what `save_memory` saved; returns the blocks loaded."""
    folder = Path(path)
    there = _read(folder / SEQUENCES, _SEQUENCES)["sequences"]
    known = {entry["name"] for entry in open_memory(folder / BLOCKS, key).header["sessions"]}
    if len({*there.values()}) < len(there) or not known.issuperset(there.values()):
        raise CorruptMemoryError(f"{folder / SEQUENCES}: sessions of {folder / BLOCKS} expected")
    # Entries are tried on a buffer of the same size first: nothing may be changed here where they
    # are refused, and the blocks may be refused, too.
    buffer.empty_like().load_state(folder / STATES, key=key)
    blocks = memory.load(folder / BLOCKS, key=key)
    buffer.load_state(folder / STATES, key=key)
    # Sessions got numbers of their own here.
    table = memory._core.table
    buffer.rename_sequences({int(number): table.require(name) for number, name in there.items()})
    return blocks


def save_about(folder: Path, about: dict[str, Any]) -> None:
    """Save what a model class is made of, beside the decoder's own files."""
    _write(folder / ABOUT, {"format": FORMAT, **about})


def load_about(folder: Path, kind: str) -> dict[str, Any]:
    """What `save_about` saved of a class of that name."""
    about: dict[str, Any] = _read(folder / ABOUT, _ABOUT)
    if about["class"] != kind:
        raise ConfigError(f"{folder}: a {kind} expected, it holds a {about['class']}")
    # Written by any version: what an older one named is not looked at.
    forget_paths(about["config"])
    return about


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing."""
    temporary = path.with_suffix(".tmp")
    # A crash in the middle must leave the old file.
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def _read(path: Path, check: Check) -> Any:
    if not path.is_file():
        raise MemoryNotFoundError(f"{path} does not exist: nothing was saved there by cmr")
    content = parse(read_whole(path, _MOST), path)
    hold(check, content, path)
    return content
