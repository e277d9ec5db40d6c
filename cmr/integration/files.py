"""The folders that a memory was saved to or loaded from."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
        base: the save that what is stored goes on from; None where blocks got other numbers.
        key: that encrypts it.
        forgotten: how often something was forgotten when the folder was last written.
    """

    base: str | None
    key: Key
    forgotten: int


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
            base=None if known is None else known.base,
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
        saved = open_saved(path, key, self._core.adapter, tokenizer)
        loader = Loader(self._core, saved, sessions)
        saved.verify(loader.numbers)
        blocks = loader.load()
        # Only where blocks kept their numbers can a later save go on from what is there.
        base = saved.id if loader.exact else None
        self._known[str(Path(path).resolve())] = _Known(base, key, self._core.forgotten)
        return blocks

    def forget(self, numbers: Sequence[int], sessions: Sequence[str]) -> tuple[str, ...]:
        """Forget in every known folder; see `Memory.forget`.

        Args:
            numbers: of the blocks, as they are here.
            sessions: names of sessions that ended.

        Returns:
            The folders that were changed.
        """
        changed = []
        for where, (base, key, _) in list(self._known.items()):
            try:
                saved = Saved.open(where, key=key)
            except MemoryNotFoundError:
                del self._known[where]
                continue
            gone = archive.of_sessions(saved, sessions)
            if base is not None and saved.id == base:
                gone |= torch.isin(saved.numbers, torch.tensor(list(numbers), dtype=torch.int64))
            # Also where none of them is left: files may hold blocks that were dropped since.
            report = archive.forget(saved, gone, sessions)
            base = report.id if base is not None else None
            self._known[where] = _Known(base, key, self._core.forgotten)
            changed.append(where)
        return tuple(changed)
