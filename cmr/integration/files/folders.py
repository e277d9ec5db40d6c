"""The folders that a memory was saved to or loaded from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cmr.errors import MemoryNotFoundError, StoreBusyError
from cmr.integration.core import Core
from cmr.integration.decoder import fingerprint
from cmr.integration.files.loader import Loader
from cmr.integration.requests.lock import FairLock, Hold
from cmr.memory import archive
from cmr.memory.store import Saved, SaveReport, save
from cmr.memory.store.form import DTYPE_NAMES

Key = bytes | str | None


class MemoryContent:
    """The blocks of some sessions as they are when this is made, as `cmr.memory.store` saves them.

    A context manager: it is made and entered while `core.lock` is held. From then on the store may
    change: rows are given under the lock, those of one part at a time, and a block that is about to
    leave its slot is copied aside first, as far as its rows were not given yet. Blocks whose time
    is over by then are not: their rows are zeros, and `due` tells them. Ephemeral sessions are left
    out. `about` is what the header says of model and tokenizer.
    """

    def __init__(self, core: Core, sessions: Sequence[int] | None, about: dict[str, Any]) -> None:
        self._core, self._blocks = core, core.ring
        infos = [
            info
            for info in core.table.infos()
            if not info.ephemeral and (sessions is None or info.number in sessions)
        ]
        ledger = self._blocks.ledger
        wanted = torch.tensor([info.number for info in infos], dtype=torch.int64)
        slots = ledger.slots_of(None)
        self.slots = slots[torch.isin(ledger.owner[slots], wanted)]
        self.kinds = self._blocks.kinds
        self.columns = self._blocks.about(self.slots)
        self.kind = torch.tensor(self._blocks.kind_of_tier)[self.columns["tier"]]
        self.numbers = ledger.number[self.slots]
        self.session = ledger.owner[self.slots]
        self._deadline = self.columns["deadline"]
        used = {name for info in infos for name in info.adapters or ()}
        weights = fingerprint.adapters(core.adapter.model, used) if used else {}
        # The position of the block that each slot still holds of these, -1 for none.
        self._place = torch.full((ledger.slots,), -1)
        self._place[self.slots] = torch.arange(len(self.slots))
        self._given = {
            part: torch.zeros(len(self.slots), dtype=torch.bool)
            for kind in self.kinds
            for part in kind.parts
        }
        self._aside: dict[tuple[str, int], torch.Tensor] = {}
        self.header = {
            **about,
            "config": core.config.to_dict(),
            "store": core.layout.store,
            "index_layer": core.layout.index_layer,
            "index": core.index_digest,
            "calibrated": core.calibration is not None,
            "clock": self._blocks.clock,
            "limit": ledger.limit,
            "tiers": [[tier.name, tier.slots] for tier in ledger.tiers],
            "sessions": [
                {"name": i.name, "number": i.number, "position": i.position, "ttl": i.ttl}
                | ({"adapters": {name: weights[name] for name in i.adapters}} if i.adapters else {})
                for i in infos
            ],
            "scorer": {
                name: [DTYPE_NAMES[t.dtype], list(t.shape), t.flatten().tolist()]
                for name, t in core.scorer.state().items()
            },
        }

    def __enter__(self) -> MemoryContent:
        self._blocks.on_change = self._set_aside
        return self

    def __exit__(self, *_: object) -> None:
        with self._core.lock:
            self._blocks.on_change = None
            self._aside.clear()

    def due(self) -> torch.Tensor:
        """Which blocks' time is over by now, `[n]` bool."""
        return self._deadline <= time.time()

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        """One part of blocks at positions `at`, `[k, ...]` on the CPU; asked for once."""
        slots = self.slots[at]
        wanted = self.kinds[kind].parts[part]
        out = torch.zeros((len(at), *wanted.shape), dtype=wanted.dtype)
        with self._core.lock:
            # A slot may have another block by now: then the rows were set aside.
            there = self._place[slots] == at
            for number, tier in enumerate(self._blocks.ledger.tiers):
                here = tier.holds(slots) & there
                if here.any():
                    held = self._blocks.parts[number][part]
                    out[here] = held[(slots[here] - tier.first).to(held.device)].cpu()
            self._given[part][at] = True
        for i in (~there).nonzero()[:, 0].tolist():
            kept = self._aside.pop((part, int(at[i])), None)
            if kept is not None:
                out[i] = kept
        return out

    def _set_aside(self, slots: torch.Tensor) -> None:
        """Copy what was not given yet of the blocks that are about to leave these slots."""
        at = self._place[slots]
        at = at[at >= 0]
        self._place[self.slots[at]] = -1
        # What expires is not copied: it must not come back by the save.
        at = at[~self.due()[at]]
        for number, tier in enumerate(self._blocks.ledger.tiers):
            here = at[tier.holds(self.slots[at])]
            for part, held in self._blocks.parts[number].items() if len(here) else ():
                left = here[~self._given[part][here]]
                rows = held[(self.slots[left] - tier.first).to(held.device)].cpu()
                self._aside.update(zip(((part, n) for n in left.tolist()), rows, strict=True))


class _Known(NamedTuple):
    """A folder that this memory was saved to or loaded from.

    Attributes:
        id: of the save that was in it; with another one it is somebody else's.
        forgotten: how often something was forgotten when the folder was last written.
        sessions: number of a session here to its number there; None: the same.
        blocks: the same of blocks; None: a later save can go on from what is there.
    """

    id: str
    key: Key
    forgotten: int
    sessions: Mapping[int, int] | None = None
    blocks: Mapping[int, int] | None = None


def open_saved(
    path: str | os.PathLike[str], key: Key, model: dict[str, Any], tokenizer: Any
) -> Saved:
    """Open a memory that the model of this fingerprint saved; see `cmr.load` for what is raised."""
    saved = Saved.open(path, key=key)
    there = saved.header.get("model")
    fingerprint.require_same(there if isinstance(there, dict) else {}, model)
    fingerprint.require_same_tokenizer(
        saved.header.get("tokenizer"), fingerprint.of_tokenizer(tokenizer)
    )
    return saved


class Files:
    """Saves and loads, and remembers where, so that what is forgotten is forgotten there, too.

    Saving, loading and forgetting take turns: each holds a lock of its own (`still`) from its
    beginning to its end, and takes `core.lock` inside it, never the other way round. So forwards
    go on beside a save, which holds `core.lock` for one part of one data file at a time, and what
    is forgotten cannot come back by a save that began before.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: dict[str, _Known] = {}
        self._turn = FairLock()

    @contextmanager
    def still(self) -> Iterator[Hold]:
        """Nobody else saves, loads or forgets inside; whoever is inside may enter again.

        What is set as the hold's `after` is called at the end, however that comes.
        """
        # Whoever is inside may wait for `core.lock`: a thread that holds it must not wait here.
        waits = None if self._turn.mine or not self._core.lock.mine else 0
        if not self._turn.acquire(timeout=waits):
            raise StoreBusyError(
                "this memory is being saved, loaded or forgotten from by another thread, which "
                "cannot go on while this one is inside a forward: call this after the forward"
            )
        try:
            yield self._turn.held
        finally:
            self._turn.release()

    def save(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None,
        key: Key,
        tokenizer: Any,
    ) -> SaveReport:
        """See `Memory.save`."""
        core = self._core
        where = str(Path(path).resolve())
        tokens = fingerprint.of_tokenizer(tokenizer)
        with self.still(), ExitStack() as stack:
            with core.lock:
                wanted = None if sessions is None else [core.table.require(n) for n in sessions]
                model = fingerprint.of_model(core.adapter)
            about = {
                "model": model,
                "model_name": Path(str(core.adapter.model.config.name_or_path)).name,
                "tokenizer": tokens,
            }
            known = self._known.get(where)
            with core.lock:
                core.keeper.expire()
                content = stack.enter_context(MemoryContent(core, wanted, about))
                forgotten = core.forgotten
            report = save(
                path,
                content,
                base=None if known is None or known.blocks is not None else known.id,
                key=key,
                clean=known is not None and known.forgotten != forgotten,
            )
            # Counted when the content was taken: what was forgotten since is still in the folder.
            self._known[where] = _Known(report.id, key, forgotten)
            return self._without(report, where, key, content.numbers[content.due()])

    def _without(
        self, report: SaveReport, where: str, key: Key, numbers: torch.Tensor
    ) -> SaveReport:
        """What was just saved without blocks whose time was over before it was done."""
        if not len(numbers):
            return report
        saved = Saved.open(where, key=key)
        if saved.id != report.id:  # somebody else has saved there since
            return report
        erased = archive.forget(saved, torch.isin(saved.numbers, numbers))
        self._known[where] = self._known[where]._replace(id=erased.id)
        return report._replace(
            id=erased.id,
            blocks=erased.blocks,
            seconds=report.seconds + erased.seconds,
            bytes_written=report.bytes_written + erased.bytes_written,
        )

    def load(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None,
        key: Key,
        tokenizer: Any,
    ) -> int:
        """See `Memory.load`: everything is checked, checksums included, before anything is kept."""
        with self.still():
            with self._core.lock:
                model = fingerprint.of_model(self._core.adapter)
            return self.take(open_saved(path, key, model, tokenizer), sessions, key)

    def take(self, saved: Saved, sessions: Sequence[str] | None, key: Key) -> int:
        """The same of a memory that was opened; see `Memory.load`."""
        with self.still():
            with self._core.lock:
                loader = Loader(self._core, saved, sessions)
            # Takes longest, and looks at files alone: forwards go on meanwhile.
            saved.verify(loader.numbers)
            # What is half loaded must be neither read nor displaced: no turns in between.
            with self._core.lock:
                loaded = loader.load()
                forgotten = self._core.forgotten
            self._known[str(Path(saved.path).resolve())] = _Known(
                saved.id, key, forgotten, loaded.sessions, loaded.blocks
            )
        return loaded.total

    def forget(
        self, numbers: Sequence[int], ended: Sequence[int], names: Sequence[str]
    ) -> tuple[str, ...]:
        """Forget blocks and sessions that ended in every known folder; returns those changed."""
        changed = []
        with self.still():
            for where, known in list(self._known.items()):
                try:
                    saved = Saved.open(where, key=known.key)
                except MemoryNotFoundError:
                    del self._known[where]
                    continue
                # By numbers, as they were there; in somebody else's save only names tell.
                ours = saved.id == known.id
                there, gone = list(names), torch.zeros(len(saved), dtype=torch.bool)
                if ours:
                    there = archive.names_of(saved, _there(ended, known.sessions))
                    gone = torch.isin(saved.numbers, _there(numbers, known.blocks))
                gone |= archive.of_sessions(saved, there)
                # Also where none of them is left: files may hold blocks that were dropped since.
                report = archive.forget(saved, gone, there)
                if ours:
                    self._known[where] = known._replace(id=report.id)
                changed.append(where)
        return tuple(changed)


def _there(numbers: Sequence[int], known: Mapping[int, int] | None) -> torch.Tensor:
    """What numbers of here are there, `[n]` int64, as far as they are known."""
    if known is not None:
        numbers = [known[number] for number in numbers if number in known]
    return torch.tensor(list(numbers), dtype=torch.int64)
