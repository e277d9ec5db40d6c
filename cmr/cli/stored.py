"""A saved memory as the commands open it: its key, its sessions, and the text of its tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cmr.cli.display import working
from cmr.cli.errors import UsageError
from cmr.cli.keys import HOW, Key
from cmr.errors import CMRError, MemoryKeyError, MemoryNotFoundError, UnknownSessionError
from cmr.memory import archive
from cmr.memory.inspection import StoredBlock
from cmr.memory.store import Saved
from cmr.memory.store.checked import open_memory

SMALL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Stored:
    """A saved memory that was opened, with its folder as the user wrote it and what opened it."""

    saved: Saved
    path: Path
    key: bytes | str | None
    """None: it is in the clear."""

    @property
    def sessions(self) -> list[str]:
        """Names of its sessions, oldest first."""
        return [entry["name"] for entry in self.saved.header["sessions"]]

    @property
    def model_name(self) -> str:
        """Name of the model that saved it, '' where it has none."""
        return SMALL if self.by_small_model else self._model_name

    @property
    def by_small_model(self) -> bool:
        """Whether it has the small model's name, or that of the folder where it is kept."""
        return self._model_name.lower().startswith("smollm2-135m")

    @property
    def _model_name(self) -> str:
        return str(self.saved.header["model_name"])

    @property
    def saved_at(self) -> float:
        """When it was saved, in seconds since the epoch."""
        return (self.path / "manifest.json").stat().st_mtime

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all files in its folder."""
        return sum(entry.stat().st_size for entry in os.scandir(self.path) if entry.is_file())

    def require(self, sessions: Sequence[str]) -> None:
        """Raises `UnknownSessionError` for a session that it does not have."""
        there = self.sessions
        for name in sessions:
            if name not in there:
                raise UnknownSessionError(
                    f"--session {name}: no such session in {self.path}; it has {named(there)}"
                )

    def blocks(self) -> list[StoredBlock]:
        """What it holds, without texts."""
        return archive.stored_blocks(self.saved, None)


def open_stored(path: Path, key: Key, option: str = "", will_save: bool = False) -> Stored:
    """Open a saved memory; `option` is the one that named it, for errors.

    With `will_save` it will be saved with the key, and one in the clear is fine then.
    """
    try:
        return Stored(open_memory(path, key.value), path, key.value)
    except MemoryNotFoundError as error:
        said = f"{option}: {error}" if option else str(error)
        raise UsageError(f"{said}; `cmr ask --document FILE --save {path}` makes one") from None
    except MemoryKeyError as error:
        # A key that does not open it is either wrong, or of another memory: this one is in the
        # clear, which is an error only where the key was given for it.
        said = f"{option} {path}".strip()
        if key.value is None:
            raise UsageError(f"{said}: it is encrypted, give its key: {HOW}") from None
        try:
            clear = open_memory(path)
        except MemoryKeyError:
            raise error from None
        if key.asked_for and not will_save:
            raise UsageError(f"{said}: it is not encrypted, leave --key-file out") from None
        return Stored(clear, path, None)


def named(names: Sequence[str], most: int = 8) -> str:
    """Names for an error message, the first few of them."""
    shown = ", ".join(repr(name) for name in names[:most])
    more = len(names) - most
    return (shown + (f" and {more} more" if more > 0 else "")) or "none"


class Texts:
    """Gives the text of token ids, where the tokenizer that they are of can be had.

    That of `model`, a folder or name; None: of the small one, if its name fits.
    """

    def __init__(self, stored: Stored, model: str | None) -> None:
        self.err = Console(stderr=True, highlight=False)
        # Why there is no text, where there is none: it is told as a remark, not as an error.
        self.why_not = ""
        self._tokenizer: Any = None
        name = stored.model_name
        if model is None and not stored.by_small_model:
            saved_by = f"saved by the model {name!r}" if name else "saved by another model"
            self.why_not = f"it was {saved_by}: give that with --model"
            return
        # A model that was named and cannot be loaded is an error; without the small one, which
        # nobody named, there is just no text.
        try:
            tokenizer = self._load(model)
        except UsageError:
            raise
        except CMRError as error:
            self.why_not = str(error)
            return
        from cmr.integration.decoder.fingerprint import of_tokenizer

        wanted = stored.saved.header["tokenizer"]
        # Ids of another tokenizer would be shown as text that nobody wrote.
        if wanted is None or wanted == of_tokenizer(tokenizer):
            self._tokenizer = tokenizer
            return
        self.why_not = (
            f"the tokenizer of {model or SMALL} is not the one it was saved "
            f"with (model {name or 'without a name'})"
        )

    def _load(self, model: str | None) -> Any:
        from cmr.cli.common import load_vocabulary
        from cmr.demo.smollm2 import is_cached

        if model is not None or is_cached():
            return load_vocabulary(model)
        with working(self.err, f"converting {SMALL}, once"):
            return load_vocabulary(None)

    @property
    def known(self) -> bool:
        """Whether there are texts."""
        return self._tokenizer is not None

    def require(self, option: str) -> None:
        """Raises `UsageError` for an option that needs texts, where there are none."""
        if not self.known:
            raise UsageError(f"{option}: no text without a tokenizer: {self.why_not}")

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def of(self, blocks: Sequence[StoredBlock]) -> list[StoredBlock]:
        """The blocks with their texts, as far as there are any."""
        if self._tokenizer is None:
            return list(blocks)
        return [replace(block, text=self.decode(list(block.token_ids))) for block in blocks]


def look_into(
    path: Path, key: Key, model: str | None, sessions: Sequence[str]
) -> tuple[Stored, Texts, list[StoredBlock]]:
    """Open a saved memory that must have some sessions: it, its texts, and all its blocks."""
    stored = open_stored(path, key)
    stored.require(sessions)
    return stored, Texts(stored, model), stored.blocks()
