"""The folders that a memory was saved to or loaded from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cmr.errors import MemoryNotFoundError
from cmr.integration import fingerprint
from cmr.integration.adapter import ModelAdapter
from cmr.integration.core import Core
from cmr.integration.loading import Loader
from cmr.integration.saving import MemoryContent
from cmr.memory import archive
from cmr.memory.store import Saved, SaveReport, save

Key = bytes | str | None


class _Known(NamedTuple):
    """A folder.

    Attributes:
        id: of the save that was in it; with another one it is somebody else's.
        key: that encrypts it.
        forgotten: how often something was forgotten when the folder was last written.
        sessions: number of a session here to its number there; None: the same.
        blocks: number of a block here to its number there; None: the same, so that a later save
            can go on from what is there.
    """

    id: str
    key: Key
    forgotten: int
    sessions: Mapping[int, int] | None = None
    blocks: Mapping[int, int] | None = None


def open_saved(
    path: str | os.PathLike[str], key: Key, adapter: ModelAdapter, tokenizer: Any
) -> Saved:
    """Open a saved memory of this model; see `cmr.load` for what is raised."""
    saved = Saved.open(path, key=key)
    there = saved.header.get("model")
    fingerprint.require_same(
        there if isinstance(there, dict) else {}, fingerprint.of_model(adapter)
    )
    fingerprint.require_same_tokenizer(
        saved.header.get("tokenizer"), fingerprint.of_tokenizer(tokenizer)
    )
    return saved


class Files:
    """Saves and loads, and remembers where, so that what is forgotten is forgotten there, too.

    Args:
        core: the memory's store and settings.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: dict[str, _Known] = {}

    def save(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None,
        key: Key,
        tokenizer: Any,
    ) -> SaveReport:
        """See `Memory.save`."""
        core = self._core
        wanted = None if sessions is None else [core.table.require(name) for name in sessions]
        core.ring.keeper.expire()
        about = {
            "model": fingerprint.of_model(core.adapter),
            "model_name": Path(str(core.adapter.model.config.name_or_path)).name,
            "tokenizer": fingerprint.of_tokenizer(tokenizer),
        }
        where = str(Path(path).resolve())
        known = self._known.get(where)
        report = save(
            path,
            MemoryContent(core, wanted, about),
            base=None if known is None or known.blocks is not None else known.id,
            key=key,
            clean=known is not None and known.forgotten != core.forgotten,
        )
        self._known[where] = _Known(report.id, key, core.forgotten)
        return report

    def load(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None,
        key: Key,
        tokenizer: Any,
    ) -> int:
        """See `Memory.load`: everything is checked, checksums included, before anything is kept."""
        return self.take(open_saved(path, key, self._core.adapter, tokenizer), sessions, key)

    def take(self, saved: Saved, sessions: Sequence[str] | None, key: Key) -> int:
        """The same of a memory that was opened; see `Memory.load`."""
        loader = Loader(self._core, saved, sessions)
        saved.verify(loader.numbers)
        loaded = loader.load()
        self._known[str(Path(saved.path).resolve())] = _Known(
            saved.id, key, self._core.forgotten, loaded.sessions, loaded.blocks
        )
        return loaded.total

    def forget(
        self, numbers: Sequence[int], ended: Sequence[int], names: Sequence[str]
    ) -> tuple[str, ...]:
        """Forget in every known folder; see `Memory.forget`.

        Blocks and sessions are known there by the numbers that they had; where somebody else has
        saved since, only sessions are, by their names.

        Args:
            numbers: of the blocks, as they are here.
            ended: numbers of the sessions that ended.
            names: of the same sessions.

        Returns:
            The folders that were changed.
        """
        changed = []
        for where, known in list(self._known.items()):
            try:
                saved = Saved.open(where, key=known.key)
            except MemoryNotFoundError:
                del self._known[where]
                continue
            ours = saved.id == known.id
            there, gone = list(names), torch.zeros(len(saved), dtype=torch.bool)
            if ours:
                there = archive.names_of(saved, _there(ended, known.sessions))
                gone = torch.isin(saved.numbers, _there(numbers, known.blocks))
            gone |= archive.of_sessions(saved, there)
            # Also where none of them is left: files may hold blocks that were dropped since.
            report = archive.forget(saved, gone, there)
            if ours:
                self._known[where] = known._replace(id=report.id, forgotten=self._core.forgotten)
            changed.append(where)
        return tuple(changed)


def _there(numbers: Sequence[int], known: Mapping[int, int] | None) -> torch.Tensor:
    """What numbers of here are there, `[n]` int64, as far as they are known."""
    if known is not None:
        numbers = [known[number] for number in numbers if number in known]
    return torch.tensor(list(numbers), dtype=torch.int64)
