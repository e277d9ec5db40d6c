"""The folders that a memory was saved to or loaded from."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cmr.errors import MemoryNotFoundError, StoreBusyError, StoreError
from cmr.integration.core import Core
from cmr.integration.decoder import fingerprint
from cmr.integration.files.content import MemoryContent
from cmr.integration.files.demand import Demand
from cmr.integration.files.known import Key, Known, sessions_in, uids_in
from cmr.integration.files.loader import Loaded, Loader
from cmr.integration.requests.lock import FairLock, Hold
from cmr.memory.store import Saved, SaveReport, manifest, outstanding, save
from cmr.memory.store.checked import open_memory, require_savable
from cmr.memory.store.folder import Folder

_TRIES = 10


@dataclass
class _Owed:
    """What is still to be forgotten in a folder.

    Attributes:
        reason: why it is not yet.
        names: of sessions that end by it.
        demands: what the folder does not say itself; there they are numbers.
        noted: whether the folder says something of it.
        blind: how many of the demands it says as well as it can without being opened.
    """

    reason: str = ""
    names: set[str] = field(default_factory=set)
    demands: list[Demand] = field(default_factory=list)
    noted: bool = False
    blind: int = 0


def open_saved(
    path: str | os.PathLike[str], key: Key, model: dict[str, Any], tokenizer: Any
) -> Saved:
    """Open a memory that the model of this fingerprint saved; see `cmr.load` for what is raised."""
    saved = open_memory(path, key)
    fingerprint.require_same(saved.header["model"], model)
    fingerprint.require_same_tokenizer(
        saved.header["tokenizer"], fingerprint.of_tokenizer(tokenizer)
    )
    return saved


class Files:
    """Saves and loads, and remembers where, so that what is forgotten is forgotten there, too.

    Saving, loading and forgetting take turns: each holds a lock of its own (`still`) from its
    beginning to its end, and takes `core.lock` inside it, never the other way round. So forwards
    go on beside a save, which holds `core.lock` for one part of one data file at a time, and what
    is forgotten cannot come back by a save that began before.

    Forgetting is told first (`tell`: a note in each folder) and done second (`settle`): what a
    folder does not let through is tried again with every call that settles, and by whoever else
    opens the folder.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: dict[str, Known] = {}
        self._owed: dict[str, _Owed] = {}
        self._turn = FairLock(taken=self._end_interrupted)
        self._saving: weakref.ref[MemoryContent] | None = None

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

    def _end_interrupted(self) -> None:
        """Let go of what a save has copied that was interrupted before it could."""
        content = None if self._saving is None else self._saving()
        self._saving = None
        if content is not None:
            content.close()

    # -- saving and loading ----------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None,
        key: Key,
        tokenizer: Any,
        replace: bool = False,
    ) -> SaveReport:
        """See `Memory.save`."""
        core = self._core
        where = str(Path(path).resolve())
        tokens = fingerprint.of_tokenizer(tokenizer)
        with self.still() as hold, ExitStack() as stack:
            with core.lock:
                wanted = None if sessions is None else [core.table.require(n) for n in sessions]
                core.identity.require(thorough=True)
                model = core.identity.claim()
            self.settle()
            about = {
                "model": model,
                "model_name": Path(str(core.adapter.model.config.name_or_path)).name,
                "tokenizer": tokens,
            }
            known = self._known.get(where)
            with core.lock:
                core.keeper.expire()
                content = MemoryContent(core, wanted, about)
                self._saving = weakref.ref(content)
                stack.enter_context(content)
                forgotten = core.forgotten
            require_savable(content.header, path)
            # Counted when the content was taken: what was forgotten since is still in the folder.
            saving = Known(secrets.token_hex(16), key, forgotten, content.uids, content.due_next)
            # Where an interrupt comes behind the point at which the save counts.
            hold.after = partial(self._learn_of, where, saving)
            report = save(
                path,
                content,
                identity=saving.id,
                base=None if known is None or known.blocks is not None else known.ids,
                only=None if known is None or replace else known.ids,
                key=key,
                clean=where in self._owed or (known is not None and known.forgotten != forgotten),
            )
            self._known[where] = saving
            self._owed.pop(where, None)
            if bool(content.due().any()):
                # Over before it was done: it goes as from any folder.
                self.settle()
                report = report._replace(blocks=len(open_memory(where, key)))
            return report

    def _learn_of(self, where: str, saving: Known) -> None:
        """Know a folder in which a save counts that was interrupted before it could be known."""
        if self._known.get(where) is saving:
            return
        with contextlib.suppress(StoreError, OSError):
            # By the manifest alone: to open the folder would erase what is noted in it.
            if manifest.load(Folder(where), saving.key).id == saving.id:
                self._known[where] = saving

    def load(
        self, path: str | os.PathLike[str], sessions: Sequence[str] | None, key: Key, tokenizer: Any
    ) -> int:
        """See `Memory.load`: everything is checked, checksums included, before anything is kept."""
        with self.still():
            self.settle()
            with self._core.lock:
                self._core.identity.require(thorough=True)
                model = self._core.identity.claim()
            return self.take(open_saved(path, key, model, tokenizer), sessions, key)

    def take(self, saved: Saved, sessions: Sequence[str] | None, key: Key) -> int:
        """The same of a memory that was opened; see `Memory.load`."""
        with self.still():
            for _ in range(_TRIES):
                try:
                    return self._take(saved, sessions, key)
                except StoreError:
                    if saved.is_current:
                        raise
                # Somebody has saved there meanwhile: what is loaded is one save, whole.
                model, tokenizer = saved.header["model"], saved.header["tokenizer"]
                saved = open_memory(saved.path, key)
                fingerprint.require_same(saved.header["model"], model)
                fingerprint.require_same_tokenizer(saved.header["tokenizer"], tokenizer)
            raise StoreBusyError(f"{saved.path} is saved again and again while it is loaded")

    def _take(self, saved: Saved, sessions: Sequence[str] | None, key: Key) -> int:
        with self._core.lock:
            loader = Loader(self._core, saved, sessions)
        # Takes longest, and looks at files alone: forwards go on meanwhile.
        saved.verify(loader.numbers)
        where = str(Path(saved.path).resolve())
        # What is half loaded must be neither read nor displaced: no turns in between. And what is
        # loaded is known to be there, or what is forgotten later would stay there.
        with self._core.lock, self._core.journal.change():
            # Its weights may have been changed while the files were looked at.
            fingerprint.require_same(saved.header["model"], self._core.identity.claim())
            loaded = loader.load()
            self._core.journal.item(self._known, where)
            self._known[where] = self._known_of(saved, key, loaded)
        return loaded.total

    def _known_of(self, saved: Saved, key: Key, loaded: Loaded) -> Known:
        """What is known of a folder that was loaded from."""
        uids: set[str] = set()
        numbers = set(loaded.sessions.values())
        for entry in sessions_in(saved.header):
            uids |= uids_in(entry) if entry["number"] in numbers else set()
        known = Known(
            saved.id,
            key,
            self._core.forgotten,
            frozenset(uids),
            saved.due,
            loaded.sessions,
            loaded.blocks,
        )
        before = self._known.get(str(Path(saved.path).resolve()))
        if before is not None and saved.id in before.ids:
            known = known.behind(before, saved)
        return known

    # -- forgetting ------------------------------------------------------------------------------

    @property
    def outstanding(self) -> dict[str, str]:
        """Folders that still hold something that was forgotten, and why."""
        return {where: owed.reason for where, owed in list(self._owed.items())}

    def owes(self, name: str) -> bool:
        """Whether a session of this name that ended is still in some folder."""
        return any(name in owed.names for owed in self._owed.values())

    def fitting(self, demand: Demand) -> set[int]:
        """Numbers here of the blocks in folders that a demand means, as far as they are known."""
        found: set[int] = set()
        for known, saved in self._open_all():
            if saved.id in known.ids:
                found |= known.here(saved.numbers[demand.there(saved, known)[0]])
        return found

    def _open_all(self) -> Iterator[tuple[Known, Saved]]:
        for where, known in list(self._known.items()):
            # What cannot be looked into now is owed something.
            with contextlib.suppress(StoreError, OSError):
                yield known, open_memory(where, known.key)

    def owe(self, demand: Demand) -> None:
        """Remember what is to be forgotten in every known folder; again does no harm."""
        for where in list(self._known):
            owed = self._owed.setdefault(where, _Owed("it was interrupted"))
            owed.names.update(demand.ended)
            if demand not in owed.demands:
                owed.demands.append(demand)

    def tell(self) -> None:
        """Have every folder say itself what is owed there, before it is done anywhere."""
        for where in list(self._owed):
            with self._noting(where):
                self._write_down(where)

    def settle(self) -> tuple[str, ...]:
        """Forget in each known folder what is owed and what has expired; returns those changed."""
        now, changed = time.time(), []
        for where, known in list(self._known.items()):
            if where not in self._owed and known.due > now:
                continue
            with self._noting(where):
                if where in self._owed:
                    self._write_down(where)
                saved = open_memory(where, known.key)
                if saved.unsettled:
                    saved.settle()
                if saved.id in known.ids:
                    known.id = saved.id
                known.renew(saved)
                owed = self._owed.pop(where, None)
                if owed is not None and owed.noted:
                    changed.append(where)
        return tuple(changed)

    def tidy(self) -> None:
        """`settle` where there is something to do and nobody is in the way."""
        now = time.time()
        if not self._owed and all(known.due > now for known in self._known.values()):
            return
        if self._core.lock.mine or not self._turn.acquire(timeout=0):
            return
        try:
            self.settle()
        finally:
            self._turn.release()

    @contextmanager
    def _noting(self, where: str) -> Iterator[None]:
        """What goes wrong with one folder is noted, and stops no other."""
        try:
            yield
        except MemoryNotFoundError:
            self._known.pop(where, None)
            self._owed.pop(where, None)
        except (StoreError, OSError) as error:
            owed = self._owed.setdefault(where, _Owed())
            owed.reason = str(error)

    def _write_down(self, where: str) -> None:
        """Have a folder say itself what is owed there."""
        known, owed, folder = self._known[where], self._owed[where], Folder(where)
        try:
            saved = open_memory(where, known.key)
        except MemoryNotFoundError:
            raise
        except StoreError:
            for demand in owed.demands[owed.blind :]:
                blind = demand.blind_note(known)
                if blind.numbers or blind.sessions or blind.uids:
                    outstanding.write(folder, blind)
                    owed.noted = True
                owed.blind += 1
            raise
        owed.blind = 0
        for demand in list(owed.demands):
            for _ in range(_TRIES):
                note = demand.note(saved, known)
                if note is not None:
                    outstanding.write(folder, note)
                    owed.noted = True
                if saved.is_current:
                    break
                # Numbers are those of the save that was looked at.
                saved = open_memory(where, known.key)
            owed.demands.remove(demand)
