"""A saved memory that was opened: checked, read part by part, forgotten from."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from cmr.errors import CorruptMemoryError, StoreBusyError, StoreError
from cmr.memory.slot_ledger import ranges_of
from cmr.memory.store import manifest, outstanding
from cmr.memory.store.columns import COLUMN, places_of, read_columns
from cmr.memory.store.datafile import DataFile, check_sum
from cmr.memory.store.fields import Check, anything
from cmr.memory.store.folder import Folder, read_whole
from cmr.memory.store.form import Kind, check_content
from cmr.memory.store.manifest import DEAD, ColumnFile, Manifest, Shard
from cmr.memory.store.saver import Saver, SaveReport
from cmr.memory.store.vault import Key


class Batch(NamedTuple):
    """Blocks of one kind from one data file: which ones, and a CPU tensor `[k, *shape]` by name.

    In the clear and side by side in the file, these are the mapped file itself: read from the disk
    when touched, private when written to.
    """

    kind: int
    positions: torch.Tensor
    parts: dict[str, torch.Tensor]


class Saved:
    """A saved memory, opened by `Saved.open`. It is `Content` itself and can be saved elsewhere.

    What is still to be forgotten there (see `outstanding`) and blocks whose time is over, by the
    column `deadline`, are not in it; `due` is when the next one's is. `format_version` is that of
    the manifest on the disk; an older one was migrated as it was read.
    """

    def __init__(self, folder: Folder, found: Manifest) -> None:
        self._folder = folder
        self._take(found, outstanding.read(folder))

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, key: Key | None = None, header: Check = anything
    ) -> Saved:
        """Opens a saved memory and checks it, except for the checksums of its blocks.

        `header` is what its header is held to before another file is opened.

        Where the folder can be locked at once, what is left out of it is erased, and what a save
        that was killed has left; see `settle`.

        Raises:
            MemoryNotFoundError: there is none.
            CorruptMemoryError: a file is missing, damaged or not what the manifest says.
            NewerFormatError: it has a newer format.
            MemoryKeyError: the key is missing or wrong, or given for a memory in the clear.
            StoreBusyError: it is being erased, or saved again and again, at this moment.
        """
        folder = Folder(path)
        for _ in range(10):
            found = manifest.load(folder, key, header=header)
            try:
                saved = cls(folder, found)
            except (CorruptMemoryError, StoreBusyError):
                # A save that ended meanwhile takes away the files of the one before it.
                if _unchanged(folder, found):
                    raise
                continue
            if saved.unsettled or folder.has_leftovers(found.files):
                # Whoever is in the way, or may not write there: it is left out all the same.
                with contextlib.suppress(StoreError, OSError):
                    saved.settle()
            return saved
        raise StoreBusyError(f"{folder.path} is saved again and again while it is opened")

    @property
    def path(self) -> str:
        """The folder."""
        return str(self._folder.path)

    def __len__(self) -> int:
        return len(self.numbers)

    def _take(self, found: Manifest, notes: outstanding.Notes) -> None:
        """Reads the columns and checks the headers of all files against the manifest."""
        columns, self._spans = read_columns(self._folder, found), []
        for shard in found.shards:
            with self._open(found, shard) as file:
                parts = found.kinds[shard.kind].parts
                self._spans.append(file.spans(parts, len(shard.numbers)))
        self._places = places_of(found, columns, self._folder)
        self._manifest, self._notes = found, notes
        self.id, self.format_version, self.library = found.id, found.version, found.library
        self.kinds: Sequence[Kind] = found.kinds
        gone, ended = outstanding.left_out(
            notes.values(), found.id, found.header, columns["numbers"], columns["session"]
        )
        self.header: dict[str, Any] = outstanding.without(found.header, ended)
        self.due = math.inf
        deadline = columns.get(f"{COLUMN}deadline")
        if deadline is not None and deadline.ndim == 1 and deadline.is_floating_point():
            gone |= deadline <= time.time()
            self.due = min((math.inf, *deadline[~gone].tolist()))
        self._left_out = bool(ended) or bool(gone.any())
        if self._left_out:
            columns = {name: column[~gone] for name, column in columns.items()}
            # The last: rows that no block has.
            position = torch.cat([(~gone).cumsum(0) - 1, torch.tensor([DEAD])])
            position[:-1][gone] = DEAD
            self._places = [position[place] for place in self._places]
        self.kind, self.numbers = columns.pop("kind"), columns.pop("numbers")
        self.session = columns.pop("session")
        self.columns: Mapping[str, torch.Tensor] = {
            name.removeprefix(COLUMN): column for name, column in columns.items()
        }

    def _open(self, found: Manifest, shard: Shard) -> DataFile:
        return DataFile(self._folder.file(shard.file), shard.bytes, found.vault)

    def _check_present(self) -> None:
        if not self.is_current:
            raise StoreError(f"{self.path} was saved again since it was opened: open it again")

    # -- reading ---------------------------------------------------------------------------------

    def verify(self, sessions: Sequence[int] | None = None) -> None:
        """Holds every data file, or those with blocks of some sessions, to its checksum."""
        self._check_present()
        chosen: list[Shard | ColumnFile] = [
            shard
            for shard, place in zip(self._manifest.shards, self._places, strict=True)
            if sessions is None or len(self._rows_of(place, sessions))
        ]
        # The hash lets other threads run: a few files at once are read about as fast as the disk.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(self._check_sum, [*chosen, self._manifest.columns]):
                pass

    def _check_sum(self, file: Shard | ColumnFile) -> None:
        check_sum(self._folder.file(file.file), file.bytes, file.sha256)

    def batches(self, sessions: Sequence[int] | None = None) -> Iterator[Batch]:
        """The blocks, file by file; while one is used, the next is read, never more at a time.

        As long as a tensor of an unencrypted batch is alive, nobody can erase the file it is in. Of
        files without blocks of the sessions wanted nothing is read.
        """
        self._check_present()
        wanted = [(n, self._rows_of(place, sessions)) for n, place in enumerate(self._places)]
        wanted = [(number, rows) for number, rows in wanted if len(rows)]

        def batch(number: int, rows: torch.Tensor) -> Batch:
            kind = self._manifest.shards[number].kind
            parts = self._read(number, list(self.kinds[kind].parts), rows)
            return Batch(kind, self._places[number][rows], parts)

        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(batch, *first) for first in wanted[:1]]
            for following in [*wanted[1:], None]:
                if not coming:
                    return
                # Popped, or this generator would hold the file while the caller uses the next.
                ready = coming.pop().result()
                if following:
                    coming.append(ahead.submit(batch, *following))
                yield ready
                del ready

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        """One part of the blocks of a kind at positions `at`: `[k, *shape]`, a copy."""
        wanted = self.kinds[kind].parts[part]
        out = torch.empty((len(at), *wanted.shape), dtype=wanted.dtype)
        slot = torch.full((len(self),), DEAD)
        slot[at] = torch.arange(len(at))
        found = 0
        for number, (shard, place) in enumerate(
            zip(self._manifest.shards, self._places, strict=True)
        ):
            if shard.kind != kind:
                continue
            rows = ((place >= 0) & (slot[place.clamp(min=0)] >= 0)).nonzero().view(-1)
            if len(rows):
                out[slot[place[rows]]] = self._read(number, [part], rows)[part]
                found += len(rows)
        if found != len(at):
            raise ValueError(f"positions of {len(at)} blocks of kind {kind} expected")
        return out

    def _rows_of(self, place: torch.Tensor, sessions: Sequence[int] | None) -> torch.Tensor:
        """Rows of a file that hold blocks of some sessions (None: of any)."""
        used = place >= 0
        if sessions is not None:
            wanted = torch.tensor(list(sessions), dtype=torch.int64)
            used &= torch.isin(self.session[place.clamp(min=0)], wanted)
        return used.nonzero().view(-1)

    def _read(self, number: int, names: list[str], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows (ascending, at least one) of some parts of a data file."""
        spans = {name: self._spans[number][name] for name in names}
        first, last = int(rows[0]), int(rows[-1])
        runs = ranges_of(rows)
        with self._open(self._manifest, self._manifest.shards[number]) as file:
            buffer = file.buffer(
                [
                    (span.begin + a * span.row_bytes, span.begin + b * span.row_bytes)
                    for span in spans.values()
                    for a, b in runs
                    if span.row_bytes
                ]
            )
        # One view over all rows from the first to the last: in the clear only what is used is read.
        whole = {n: span.view(buffer, first, last + 1 - first) for n, span in spans.items()}
        if len(runs) == 1:
            return whole
        return {name: tensor.index_select(0, rows - first) for name, tensor in whole.items()}

    # -- forgetting ------------------------------------------------------------------------------

    def forget(
        self,
        at: torch.Tensor,
        header: dict[str, Any] | None = None,
        *,
        shard_bytes: int | None = None,
    ) -> SaveReport:
        """Removes blocks (positions `[k]` int64) for good and saves the rest, all or nothing.

        Files with any of the blocks are written again without them; the old ones, the old columns
        and the old manifest are overwritten with zeros before they are removed. So is what killed
        saves left behind. If this is interrupted after it took effect, the next save or `forget`
        erases the rest. Copies that a file system or a disk keeps by itself are out of its reach.
        `header` takes the place of the header (names of sessions are in it).

        It counts as a save of its own: who goes on from the one before is refused.

        Raises:
            StoreBusyError: another save is running, or somebody reads a file that is to be erased.
            CorruptMemoryError: a file that would be written again has another checksum.
            StoreError: the folder was saved to since it was opened.
        """
        if at.dtype != torch.int64 or at.ndim != 1:
            raise ValueError(f"[k] int64 positions expected, got {list(at.shape)} {at.dtype}")
        if len(at) and not 0 <= int(at.min()) <= int(at.max()) < len(self):
            raise ValueError(f"positions 0..{len(self) - 1} expected, got others among them")
        # Checked before the folder is touched, as any content.
        check_content(self._rest(at, header))
        with self._folder.writing():
            self._check_present()
            return self._rewrite(at, header, secrets.token_hex(16), shard_bytes)

    @property
    def is_current(self) -> bool:
        """Whether the folder still holds what was opened."""
        return _unchanged(self._folder, self._manifest)

    @property
    def unsettled(self) -> bool:
        """Whether something is in the folder that is left out here: whoever can erases it."""
        return self._left_out or bool(self._notes)

    @property
    def has_unnamed_rows(self) -> bool:
        """Whether a file has rows that the manifest does not name, as older versions left them."""
        return any(DEAD in shard.numbers for shard in self._manifest.shards)

    def settle(self) -> None:
        """Erases what is left out, and what saves that were killed have left behind.

        Blocks whose time is over leave the save what it is; what was forgotten makes it the one
        that its note names. Raises as `forget` does; nothing is changed then.
        """
        with self._folder.writing():
            self._check_present()
            found, notes = self._manifest, outstanding.read(self._folder)
            if notes != self._notes:
                self._take(found, notes)
            if self._left_out or self.has_unnamed_rows:
                # Who wrote the only note knows the save again; anybody else has to look at it.
                known = {note.then if note.save == found.id else "" for note in notes.values()}
                identity = (known or {found.id}).pop() if len(known) < 2 else ""
                self._rewrite(
                    torch.tensor([], dtype=torch.int64), None, identity or secrets.token_hex(16)
                )
                return
            for name in self._folder.unnamed(found.files):
                self._folder.remove(self._folder.path / name, overwrite=True)
            outstanding.done(self._folder, notes, found.id, found.id)
            self._notes = {}

    def _rest(self, without: torch.Tensor, header: dict[str, Any] | None) -> outstanding.Rest:
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[without] = False
        about = self.header if header is None else header
        return outstanding.Rest(self, keep.nonzero().view(-1), about)

    def _rewrite(
        self,
        without: torch.Tensor,
        header: dict[str, Any] | None,
        identity: str,
        shard_bytes: int | None = None,
    ) -> SaveReport:
        """Saves the rest in the place of what is there, by whoever holds the folder's lock."""
        found, rest = self._manifest, self._rest(without, header)
        self._check_rewritten(without)
        saver = Saver(self._folder, rest, found.vault, shard_bytes, clean=True, id=identity)
        report = saver.save(found, found)
        outstanding.done(self._folder, self._notes, found.id, identity)
        written = manifest.load(self._folder, found.vault)
        self._take(written, outstanding.read(self._folder))
        return report

    def _check_rewritten(self, without: torch.Tensor) -> None:
        """Raises for damage that would get a right checksum by being written again."""
        gone = torch.zeros(len(self) + 1, dtype=torch.bool)
        gone[without] = True
        gone[DEAD] = True  # the last: rows that are not used
        for shard, place in zip(self._manifest.shards, self._places, strict=True):
            if bool(gone[place].any()):
                self._check_sum(shard)


def _unchanged(folder: Folder, found: Manifest) -> bool:
    if not folder.exists():
        return False
    raw = read_whole(folder.manifest, manifest.MAX_MANIFEST)
    return manifest.checksum(raw) == found.checksum
