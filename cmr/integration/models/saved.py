"""What a model class remembers, and the class itself, in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from cmr.config import CMRConfig
from cmr.errors import ConfigError, CorruptMemoryError, MemoryNotFoundError
from cmr.integration.models.backbone.quantisation import ready_to_save
from cmr.integration.models.memory_model import MemoryModel

FORMAT = 1
ABOUT, SEQUENCES = "cmr_model.json", "sequences.json"
MEMORY, BLOCKS, STATES = "cmr_memory", "memory", "buffer"
M = TypeVar("M", bound="SavedModel")


class SavedModel(MemoryModel):
    """Saving and loading, of what is remembered and of the whole."""

    def save_memory(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> None:
        """Save what is remembered to a folder: the memory's blocks and the buffer's entries.

        It is raw user data, see `Memory.save`. Ephemeral sessions are left out.

        Args:
            path: a folder: new, empty, or one that was saved before.
            key: encrypts it: 32 bytes or a passphrase.

        Raises:
            StoreError: it could not be saved.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.memory.save(folder / BLOCKS, key=key)
        self.memory_buffer.save_state(folder / STATES, key=key)
        infos = self.memory._core.table.infos()
        numbers = {str(info.number): info.name for info in infos if not info.ephemeral}
        _write(folder / SEQUENCES, {"format": FORMAT, "sequences": numbers})

    def load_memory(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> int:
        """Take in what `save_memory` saved; returns the blocks loaded.

        The buffer's entries take the place of those here. A session of a name that is known here
        already is refused: `clear_memory()` first, or rename it.

        Args:
            path: the folder.
            key: what it was encrypted with.

        Raises:
            StoreError: there is none, it is damaged, or the key is wrong.
            ModelMismatchError: another model saved it.
            ValueError: a session of a saved name exists here, or the buffer has other limits.
                Nothing is changed in any of these cases.
        """
        folder = Path(path)
        there = _read(folder / SEQUENCES).get("sequences")
        if not isinstance(there, dict):
            raise CorruptMemoryError(f"{folder / SEQUENCES}: 'sequences' expected")
        fresh = self._new_buffer()
        fresh.load_state(folder / STATES, key=key)
        blocks = self.memory.load(folder / BLOCKS, key=key)
        self.memory_buffer.load_state(folder / STATES, key=key)
        table = self.memory._core.table
        self.memory_buffer.rename_sequences(
            {int(number): table.require(name) for number, name in there.items()}
        )
        return blocks

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        memory: bool = False,
        key: bytes | str | None = None,
        **options: Any,
    ) -> None:
        """Save configuration and weights, as `from_pretrained` takes them.

        Args:
            folder: where; made where it does not exist.
            memory: save what is remembered, too (raw user data).
            key: encrypts that.
            **options: for the decoder's own `save_pretrained`.
        """
        where = Path(folder)
        ready_to_save(self.model)
        self.model.save_pretrained(where, **options)
        about = {
            "format": FORMAT,
            "class": type(self).__name__,
            "config": self.memory_config.to_dict(),
            "output_hidden_size": self.output_hidden_size,
            "buffer": self._buffer_settings,
            "memory_enabled": self.memory_enabled,
            "memory": MEMORY if memory else None,
        }
        _write(where / ABOUT, about)
        if memory:
            self.save_memory(where / MEMORY, key=key)

    @classmethod
    def from_pretrained(
        cls: type[M],
        folder: str | os.PathLike[str],
        *,
        key: bytes | str | None = None,
        tokenizer: Any = None,
        **loading: Any,
    ) -> M:
        """A model as `save_pretrained` left it: it gives the same logits, in a new process, too.

        Args:
            folder: where it was saved.
            key: of a memory that was encrypted.
            tokenizer: as for `cmr.attach`.
            **loading: for `load_backbone`, such as `device`.

        Raises:
            MemoryNotFoundError: nothing was saved there by such a class.
            ConfigError: another class was, or settings that this version does not know.
            StoreError: what was remembered cannot be loaded.
        """
        from cmr.integration.models.backbone.loaded import load_backbone

        where = Path(folder)
        about = _read(where / ABOUT)
        if about.get("class") != cls.__name__:
            raise ConfigError(
                f"{where}: a {cls.__name__} expected, it holds a {about.get('class')}"
            )
        config = CMRConfig.from_dict(about["config"])
        made = cls(
            load_backbone(where, **loading),
            config,
            output_hidden_size=about["output_hidden_size"],
            tokenizer=tokenizer,
        )
        made._set_buffer(about["buffer"])
        made.memory_enabled = bool(about["memory_enabled"])
        if about["memory"] is not None:
            made.load_memory(where / about["memory"], key=key)
        return made


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing."""
    temporary = path.with_suffix(".tmp")
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
