"""Saving: what changed is written, and takes effect in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import FrameType
from typing import NamedTuple

import torch

import cmr
from cmr._fork import close, own
from cmr._frames import user_frame
from cmr.errors import CorruptMemoryError, MemoryKeyError, StoreBusyError, StoreError
from cmr.memory.store import outstanding
from cmr.memory.store.datafile import DataFile
from cmr.memory.store.datawriter import DataWriter
from cmr.memory.store.folder import SAFELY, Folder, erase, lock
from cmr.memory.store.form import Content, Part, check_content
from cmr.memory.store.manifest import ColumnFile, Manifest, Shard, load
from cmr.memory.store.vault import Key, Vault, check_key

SHARD_BYTES, MOST_FILES = 8 << 20, 512


class SaveReport(NamedTuple):
    """What a save did.

    Attributes:
        id: of the save: the `base` of the next one.
        seconds: how long it took.
        bytes_written: bytes of new files, without the manifest.
        bytes_reused: bytes of files that stayed as they were.
        shards_written: new files of blocks.
        shards_reused: files of blocks that stayed as they were.
        blocks: blocks in the saved memory.
    """

    id: str
    seconds: float
    bytes_written: int
    bytes_reused: int
    shards_written: int
    shards_reused: int
    blocks: int


def save(
    path: str | os.PathLike[str],
    content: Content,
    *,
    base: str | Collection[str] | None = None,
    only: Collection[str] | None = None,
    key: Key | None = None,
    shard_bytes: int | None = None,
    clean: bool = False,
    identity: str | None = None,
) -> SaveReport:
    """Saves a memory to a folder, all of it or not at all.

    Until the moment at which the new manifest takes the place of the old one, the folder holds the
    last save complete. It takes about the memory of a few parts of one data file beside
    what `content` takes itself.

    Args:
        path: the folder: new, empty, or of a saved memory, which is replaced.
        content: what is saved.
        base: id of the save that `content` goes on from, or several that it may have by now. Where
            the folder holds that, blocks in it (same kind and number) are not written again.
            Otherwise all are.
        only: ids of saves that may be replaced; None: whatever is there.
        key: encrypts what is saved: 32 bytes or a passphrase (needs the package cryptography).
        shard_bytes: the most bytes in a data file, one block excepted; None: 8 MiB, or 1/512 of the
            whole where that is more. A file with a block that went is written anew without it, so
            larger ones cost more after evictions, and many small ones cost every save.
        clean: overwrite what is no longer used with zeros before it is removed. Copies that a file
            system or a disk keeps by itself are out of its reach.
        identity: the id that the save gets, 32 hexadecimal digits; None: a random one.

    Raises:
        ValueError, TypeError: the content cannot be saved.
        StoreError: the folder holds something else, or a save that is not among `only`, or
            `content` has what is still to be forgotten there (see `outstanding`); of its kinds
            `StoreBusyError` when another save is running or, with `clean`, files are in use;
            `MemoryKeyError` for a key that is not of its form, does not open the folder's `base`,
            or is missing where the folder is encrypted; `CorruptMemoryError` or `NewerFormatError`
            for a manifest in the folder that cannot be read.
    """
    started = time.perf_counter()
    check_content(content)
    if key is not None:
        check_key(key)
    if shard_bytes is not None and shard_bytes < 1:
        raise ValueError(f"shard_bytes: at least 1 expected, got {shard_bytes}")
    folder = Folder(path)
    bases = {base} if isinstance(base, str) else set(base or ())
    with folder.writing():
        old = _present(folder, bool(bases) or only is not None, key)
        if old and only is not None and old.id not in only:
            raise StoreError(
                f"{folder.path} holds something else by now: the save {' or '.join(sorted(only))} "
                f"expected, got {old.id}. Somebody else has saved or forgotten there: load that, "
                "save to another folder, or ask to replace it (replace=True)"
            )
        goes_on = old is not None and old.id in bases
        kept = old if old and goes_on and (old.vault is None) == (key is None) else None
        vault = kept.vault if kept else None
        if key is not None and vault is None:
            vault = Vault.create(key)
        # Whoever turns to encryption wants no clear text left.
        clean |= old is not None and old.vault is None and vault is not None
        notes = outstanding.read(folder)
        was = old.id if old else None
        outstanding.check_obeyed(folder, content, notes, was, goes_on)
        clean |= bool(notes)
        report = Saver(
            folder, content, vault, shard_bytes, clean, identity or secrets.token_hex(16)
        ).save(old, kept)
        outstanding.done(folder, notes, was if goes_on else None, report.id)
    return report._replace(seconds=time.perf_counter() - started)


def _present(folder: Folder, known: bool, key: Key | None) -> Manifest | None:
    """The manifest in the folder; None where there is none, or, not `known`, none for this key."""
    if not folder.exists():
        return None
    try:
        return load(folder, key, either=True)
    except MemoryKeyError:
        if key is None:
            raise MemoryKeyError(
                f"{folder.path} holds an encrypted memory: give a key, or save to another folder"
            ) from None
        if known:
            raise
        return None


@dataclass
class Saver:
    """One save of content that was checked, by whoever holds the folder's lock; see `save`."""

    folder: Folder
    content: Content
    vault: Vault | None
    shard_bytes: int | None
    clean: bool
    id: str = field(default_factory=partial(secrets.token_hex, 16))

    @cached_property
    def _most(self) -> int:
        """The most bytes in a data file, one block excepted."""
        kinds = enumerate(self.content.kinds)
        whole = sum(form.nbytes * int((self.content.kind == kind).sum()) for kind, form in kinds)
        return self.shard_bytes or max(SHARD_BYTES, whole // MOST_FILES)

    def save(self, old: Manifest | None, kept: Manifest | None) -> SaveReport:
        """Writes what is new and makes it valid; `kept` is the manifest whose files may stay."""
        started = time.perf_counter()
        folder = self.folder
        shards = self._reused(kept)
        reused = {shard.file for shard in shards}
        manifest = self._written(shards)
        fresh = [name for name in manifest.files if name not in reused]
        # Before anything is moved: what cannot be written down must fail here.
        encoded = manifest.encode()
        replaced = set(old.files if old else []) - set(manifest.files)
        orphans = set(folder.unnamed([*manifest.files, *(old.files if old else [])]))
        with contextlib.ExitStack() as stack:
            # Locked before anything is changed: a reader in the way stops the save as a whole.
            doomed = self._doomed(replaced | orphans, stack, user_frame()) if self.clean else []
            folder.commit(fresh, encoded)
            # From here on the save is valid.
            for fd in doomed:
                erase(fd)
        # What cannot be removed now is left to the next save, unless it had to go.
        with contextlib.nullcontext() if self.clean else contextlib.suppress(OSError):
            for name in replaced:
                folder.remove(folder.path / name, overwrite=False)
            for name in orphans:  # of a save that was killed: so rare that they are always erased
                folder.remove(folder.path / name, overwrite=True)
        sizes = {s.file: s.bytes for s in manifest.shards}
        return SaveReport(
            id=manifest.id,
            seconds=time.perf_counter() - started,
            bytes_written=sum(sizes.get(name, manifest.columns.bytes) for name in fresh),
            bytes_reused=sum(s.bytes for s in shards),
            shards_written=len(manifest.shards) - len(shards),
            shards_reused=len(shards),
            blocks=len(self.content.numbers),
        )

    def _doomed(
        self, names: Iterable[str], stack: contextlib.ExitStack, frame: FrameType | None
    ) -> list[int]:
        """Descriptors of the files to erase, and of the old manifest, for the call of a frame."""
        found = []
        for path in [*(self.folder.path / name for name in names), self.folder.manifest]:
            try:
                fd = own(os.open(path, os.O_RDWR | SAFELY), frame)
            except FileNotFoundError:
                continue
            stack.callback(close, fd)
            if not lock(fd):
                raise StoreBusyError(
                    f"{path} is in use, so it cannot be erased: nothing was changed"
                )
            found.append(fd)
        return found

    # -- what stays ------------------------------------------------------------------------------

    def _reused(self, kept: Manifest | None) -> list[Shard]:
        """Data files that stay where they are: `content` still holds all that is in them."""
        kinds, found = list(self.content.kinds), []
        for kind, form in enumerate(kinds):
            if kept is None or form not in kept.kinds:
                continue
            numbers = self.content.numbers[self.content.kind == kind].sort().values
            candidates = []
            for shard in kept.shards:
                if kept.kinds[shard.kind] != form:
                    continue
                live = _among(torch.tensor(shard.numbers, dtype=torch.int64), numbers)
                # A row that the manifest does not name would be somebody's text all the same.
                if bool(live.all()) and self._usable(shard, kept):
                    candidates.append(shard._replace(kind=kind))
            found += self._large(candidates, len(numbers), form.nbytes)
        return found

    def _usable(self, shard: Shard, kept: Manifest) -> bool:
        """Whether a data file is there with a header as it should be."""
        try:
            with DataFile(self.folder.file(shard.file), shard.bytes, kept.vault) as file:
                file.spans(kept.kinds[shard.kind].parts, len(shard.numbers))
        except CorruptMemoryError:
            return False  # the memory that is saved still has its blocks: they are written anew
        return True

    def _large(self, candidates: list[Shard], blocks: int, each: int) -> list[Shard]:
        """The candidates that stay files of their own."""
        # Many small saves must not leave many small files: one of less than half of `_most`
        # is written again together with at least as many new bytes. A block is so written again at
        # most as often as its file's size doubles, and the small files stay logarithmically few.
        fresh = blocks - sum(len(shard.numbers) for shard in candidates)
        kept = []
        for shard in sorted(candidates, key=lambda shard: len(shard.numbers)):
            rows = len(shard.numbers)
            if fresh >= rows and 2 * rows * each < self._most:
                fresh += rows
            else:
                kept.append(shard)
        return kept

    # -- what is written -------------------------------------------------------------------------

    def _written(self, shards: list[Shard]) -> Manifest:
        """Writes all new data files into the staging folder, flushed to the disk."""
        content, new = self.content, []
        with DataWriter(self.folder.staging, self.vault) as writer:
            for kind, form in enumerate(content.kinds):
                for at in self._missing(kind, shards):
                    rows = partial(self._rows, kind, at)
                    file = writer.put("blocks", form.parts, len(at), rows)
                    new.append(Shard(*file, kind, content.numbers[at].tolist()))
            table = {"kind": content.kind, "numbers": content.numbers, "session": content.session}
            table |= {f"column.{name}": column for name, column in content.columns.items()}
            tensors = {name: column.detach().cpu() for name, column in table.items()}
            parts = {name: Part(t.dtype, tuple(t.shape[1:])) for name, t in tensors.items()}
            count = len(content.numbers)
            file = writer.put("columns", parts, count, tensors.__getitem__)
        return Manifest(
            id=self.id,
            library=cmr.__version__,
            kinds=list(content.kinds),
            shards=shards + new,
            columns=ColumnFile(*file, count, parts, {}),
            header=content.header,
            vault=self.vault,
        )

    def _missing(self, kind: int, shards: list[Shard]) -> list[torch.Tensor]:
        """Positions of the blocks of a kind that no file holds, a tensor for each new file."""
        content = self.content
        held = [torch.tensor(shard.numbers) for shard in shards if shard.kind == kind]
        at = (content.kind == kind).nonzero().view(-1)
        if held:
            at = at[~_among(content.numbers[at], torch.cat(held).sort().values)]
        # By session, then by number: what is read together lies together.
        at = at[content.numbers[at].argsort()]
        at = at[content.session[at].argsort(stable=True)]
        most = max(1, self._most // max(content.kinds[kind].nbytes, 1))
        return list(at.split(most)) if len(at) else []

    def _rows(self, kind: int, at: torch.Tensor, name: str) -> torch.Tensor:
        """One part of some blocks, held to its form."""
        part = self.content.kinds[kind].parts[name]
        rows = self.content.rows(kind, name, at)
        wanted = (len(at), *part.shape)
        if rows.dtype != part.dtype or rows.shape != wanted or rows.device.type != "cpu":
            raise ValueError(
                f"rows of {name!r}: {list(wanted)} {part.dtype} on cpu expected, "
                f"got {list(rows.shape)} {rows.dtype} on {rows.device}"
            )
        return rows


def _among(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Which `values` are in `known`, which is sorted; both int64."""
    if not len(known):
        return torch.zeros_like(values, dtype=torch.bool)
    return known[torch.searchsorted(known, values).clamp(max=len(known) - 1)] == values
