"""The folders of a model class: what it remembers, and what it is made of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cmr.errors import ConfigError, CorruptMemoryError, MemoryNotFoundError
from cmr.integration.memory import Memory
from cmr.memory.buffer.layered import LayeredMemoryBuffer

FORMAT = 1
ABOUT, SEQUENCES = "cmr_model.json", "sequences.json"
MEMORY, BLOCKS, STATES = "cmr_memory", "memory", "buffer"

Key = bytes | str | None


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
    there = _read(folder / SEQUENCES).get("sequences")
    if not isinstance(there, dict):
        raise CorruptMemoryError(f"{folder / SEQUENCES}: 'sequences' expected")
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
    about = _read(folder / ABOUT)
    if about.get("class") != kind:
        raise ConfigError(f"{folder}: a {kind} expected, it holds a {about.get('class')}")
    return about


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing."""
    temporary = path.with_suffix(".tmp")
    # A crash in the middle must leave the old file.
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MemoryNotFoundError(f"{path} does not exist: nothing was saved there by cmr")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptMemoryError(f"{path}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CorruptMemoryError(f"{path}: format {FORMAT} expected")
    return content
