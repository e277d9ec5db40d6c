"""Saving: what changed is written, and takes effect in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cmr.errors import CorruptMemoryError, MemoryKeyError, StoreBusyError
from cmr.memory.store import datafile, layout
from cmr.memory.store.folder import SAFELY, Folder, erase, flock, new_name
from cmr.memory.store.form import Content, Part, check_content
from cmr.memory.store.manifest import Columns, Manifest, Shard, load
from cmr.memory.store.plan import Plan, plan
from cmr.memory.store.vault import Key, Vault, check_key

# Files whose bytes are on their way to the disk while the next one is written.
_UNSYNCED = 2


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
    base: str | None = None,
    key: Key | None = None,
    shard_bytes: int = 64 << 20,
    clean: bool = False,
) -> SaveReport:
    """Saves a memory to a folder, all of it or not at all.

    Until the moment at which the new manifest takes the place of the old one, the folder holds the
    last save complete. It takes about the memory of a few parts of one data file beside
    what `content` takes itself.

    Args:
        path: the folder: new, empty, or of a saved memory, which is replaced.
        content: what is saved; it must not change meanwhile.
        base: id of the save that `content` goes on from. Where that is what the folder holds,
            blocks that are in it (same kind and number) are not written again. Otherwise all are.
        key: encrypts what is saved: 32 bytes or a passphrase (needs the package cryptography).
        shard_bytes: the most bytes in a data file, one block excepted.
        clean: leave no byte of blocks that `content` does not hold: data files with such rows are
            written again, and what is no longer used is overwritten with zeros before it is
            removed. Copies that a file system or a disk keeps by itself are out of its reach.

    Raises:
        ValueError, TypeError: the content cannot be saved.
        StoreError: the folder holds something else; of its kinds `StoreBusyError` when another
            save is running or, with `clean`, files are in use; `MemoryKeyError` for a key that
            is not of its form, does not open the folder's `base`, or is missing where the folder
            is encrypted; `CorruptMemoryError` or `NewerFormatError` for a manifest in the folder
            that cannot be read.
    """
    started = time.perf_counter()
    check_content(content)
    check_key(key)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes: at least 1 expected, got {shard_bytes}")
    folder = Folder(path)
    with folder.writing():
        old = _present(folder, base, key)
        kept = old if old and old.id == base and (old.vault is None) == (key is None) else None
        vault = kept.vault if kept else None
        if key is not None and vault is None:
            vault = Vault.create(key)
        if old is not None and old.vault is None and vault is not None:
            clean = True  # whoever turns to encryption wants no clear text left
        report = write(folder, content, old, kept, vault, shard_bytes, clean)
    return report._replace(seconds=time.perf_counter() - started)


def _present(folder: Folder, base: str | None, key: Key | None) -> Manifest | None:
    """The manifest in the folder; None where there is none, or none that `key` must open."""
    if not folder.exists():
        return None
    try:
        return load(folder, key, either=True)
    except MemoryKeyError:
        if key is None:
            raise MemoryKeyError(
                f"{folder.path} holds an encrypted memory: give a key, or save to another folder"
            ) from None
        if base is not None:
            raise
        return None


def write(
    folder: Folder,
    content: Content,
    old: Manifest | None,
    kept: Manifest | None,
    vault: Vault | None,
    shard_bytes: int,
    clean: bool,
) -> SaveReport:
    """The save itself, by the only writer of the folder.

    Args:
        folder: its lock is held.
        content: checked.
        old: the manifest in the folder, as far as it can be read.
        kept: the same, where its files may be kept.
        vault: encrypts what is written; that of `kept`, if given.
        shard_bytes: the most bytes in a data file.
        clean: leave no byte of other blocks.
    """
    started = time.perf_counter()
    chosen = plan(content, kept, _usable(folder, kept), shard_bytes, clean)
    manifest = _write_files(folder, content, chosen, vault)
    fresh = [name for name in manifest.files if name not in {s.file for s in chosen.kept}]
    encoded = manifest.encode()
    replaced = set(old.files if old else []) - set(manifest.files)
    orphans = set(folder.unnamed([*manifest.files, *(old.files if old else [])]))
    with contextlib.ExitStack() as stack:
        doomed = _lock_doomed(folder, replaced | orphans, stack) if clean else []
        folder.commit(fresh, encoded)
        # From here on the save is valid.
        for fd in doomed:
            erase(fd)
    # What cannot be removed now is left to the next save, unless it had to go.
    with contextlib.nullcontext() if clean else contextlib.suppress(OSError):
        for name in replaced:
            folder.remove(folder.path / name, overwrite=False)
        for name in orphans:  # of a save that was killed: so rare that they are always erased
            folder.remove(folder.path / name, overwrite=True)
    sizes = {s.file: s.bytes for s in manifest.shards}
    return SaveReport(
        id=manifest.id,
        seconds=time.perf_counter() - started,
        bytes_written=sum(sizes.get(name, manifest.columns.bytes) for name in fresh),
        bytes_reused=sum(s.bytes for s in chosen.kept),
        shards_written=len(chosen.new),
        shards_reused=len(chosen.kept),
        blocks=len(content.numbers),
    )


def _usable(folder: Folder, kept: Manifest | None) -> Callable[[Shard], bool]:
    """Whether a data file of the manifest is there with a header as it should be."""

    def usable(one: Shard) -> bool:
        assert kept is not None
        try:
            with datafile.DataFile(folder.file(one.file), one.bytes, kept.vault) as file:
                parts = kept.kinds[one.kind].parts
                layout.spans(file.read, file.size, parts, len(one.numbers), file.path)
        except CorruptMemoryError:
            return False  # the memory that is saved still has its blocks: they are written anew
        return True

    return usable


def _lock_doomed(folder: Folder, names: Iterable[str], stack: contextlib.ExitStack) -> list[int]:
    """Descriptors of the files to erase, and of the old manifest, before anything is changed.

    Raises:
        StoreBusyError: somebody reads one of them.
    """
    found = []
    for path in [*(folder.path / name for name in names), folder.manifest]:
        try:
            fd = os.open(path, os.O_RDWR | SAFELY)
        except FileNotFoundError:
            continue
        stack.callback(os.close, fd)
        if not flock(fd, exclusive=True):
            raise StoreBusyError(f"{path} is in use, so it cannot be erased: nothing was changed")
        found.append(fd)
    return found


def _write_files(folder: Folder, content: Content, chosen: Plan, vault: Vault | None) -> Manifest:
    """Writes all new data files into the staging folder, flushed to the disk."""
    kinds = list(content.kinds)
    with _Writer(folder.staging, vault) as writer:
        new = []
        for kind, at in chosen.new:
            parts = kinds[kind].parts
            file = writer.put("blocks", parts, len(at), _Rows(content, kind, at))
            new.append(Shard(*file, kind, content.numbers[at].tolist()))
        table = {"kind": content.kind, "numbers": content.numbers, "session": content.session}
        table |= {f"column.{name}": column for name, column in content.columns.items()}
        tensors = {name: column.detach().cpu() for name, column in table.items()}
        parts = {name: Part(t.dtype, tuple(t.shape[1:])) for name, t in tensors.items()}
        rows = len(content.numbers)
        columns = Columns(*writer.put("columns", parts, rows, tensors.__getitem__), rows, parts, {})
    return Manifest(
        id=secrets.token_hex(16),
        library=_version(),
        kinds=kinds,
        shards=chosen.kept + new,
        columns=columns,
        header=content.header,
        vault=vault,
    )


def _version() -> str:
    import cmr

    return cmr.__version__


@dataclass
class _Rows:
    """The rows of some blocks, part by part, as `content` gives them."""

    content: Content
    kind: int
    at: torch.Tensor

    def __call__(self, name: str) -> torch.Tensor:
        part = self.content.kinds[self.kind].parts[name]
        rows = self.content.rows(self.kind, name, self.at)
        wanted = (len(self.at), *part.shape)
        if rows.dtype != part.dtype or rows.shape != wanted or rows.device.type != "cpu":
            raise ValueError(
                f"rows of {name!r}: {list(wanted)} {part.dtype} on cpu expected, "
                f"got {list(rows.shape)} {rows.dtype} on {rows.device}"
            )
        return rows


class _Writer:
    """Writes data files one after the other while the last ones are flushed to the disk."""

    def __init__(self, folder: Path, vault: Vault | None) -> None:
        self._folder, self._vault = folder, vault
        self._hashing = ThreadPoolExecutor(1)
        self._syncing = ThreadPoolExecutor(_UNSYNCED)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._hashing.shutdown()
        self._syncing.shutdown()
        if kind is None:
            for flushed in self._pending:
                flushed.result()

    def put(
        self, role: str, parts: Mapping[str, Part], rows: int, rows_of: Any
    ) -> tuple[str, int, str]:
        """Writes a data file; returns its name, bytes and checksum."""
        head, order = layout.head(parts, rows)

        def pieces() -> Iterator[Any]:
            yield head
            for name in order:
                data = layout.raw(rows_of(name))
                if data.nbytes:
                    yield data

        path = self._folder / new_name(role, self._vault is not None)
        fd, size, digest = datafile.write(path, pieces(), self._vault, self._hashing)
        if len(self._pending) >= _UNSYNCED:
            self._pending.pop(0).result()
        self._pending.append(self._syncing.submit(_flush, fd))
        return path.name, size, digest


def _flush(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
