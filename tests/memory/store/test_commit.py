"""How a save takes effect: in which order, for whom, and what is left when it fails."""

import errno
import fcntl
import os
import sys
import threading
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from cmr._fork import own
from cmr._frames import runs_in
from cmr.errors import StoreBusyError, StoreError
from cmr.memory.store import Kind, Part, Saved, save
from tests.memory.store.made import FULL, Made, check_same, made, same_bytes


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_everything_is_on_the_disk_before_the_manifest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are flushed, then moved; the folder is flushed; the manifest comes last."""
    base = save(tmp_path, made(range(10))).id
    trace: list[tuple[str, str]] = []
    real_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace
    real_unlink = os.unlink

    def fsync(fd):
        trace.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        real_fsync(fd)

    def rename(a, b):
        trace.append(("rename", os.path.basename(b)))
        real_rename(a, b)

    def replace(a, b):
        trace.append(("replace", os.path.basename(b)))
        real_replace(a, b)

    def unlink(path, **more):
        trace.append(("unlink", os.path.basename(path)))
        real_unlink(path, **more)

    for call in (fsync, rename, replace, unlink):
        monkeypatch.setattr(os, call.__name__, call)
    save(tmp_path, made(range(30)), base=base, shard_bytes=4 * FULL.nbytes)
    monkeypatch.undo()
    moved = [name for call, name in trace if call == "rename"]
    assert len(moved) > 3
    for name in moved:
        assert trace.index(("fsync", name)) < trace.index(("rename", name))
    moment = trace.index(("replace", "manifest.json"))
    assert trace.index(("fsync", "manifest.json")) < moment
    last_move = max(trace.index(("rename", name)) for name in moved)
    flushed = [i for i, entry in enumerate(trace) if entry == ("fsync", tmp_path.name)]
    assert any(last_move < i < moment for i in flushed)
    assert any(i > moment for i in flushed)
    assert all(i > moment for i, entry in enumerate(trace) if entry[0] == "unlink")


def test_two_savers_are_kept_apart(tmp_path: Path) -> None:
    save(tmp_path, made(range(5)))
    fd = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(StoreBusyError, match="another save to it is running"):
        save(tmp_path, made(range(6)))
    with pytest.raises(StoreBusyError, match="another save"):
        Saved.open(tmp_path).forget(torch.tensor([0]))
    check_same(Saved.open(tmp_path), made(range(5)))
    os.close(fd)
    save(tmp_path, made(range(6)))


def test_a_lock_that_an_interrupt_left_behind_is_taken_back(tmp_path: Path) -> None:
    """Of this process: a call that has ended holds nothing; one under way, in any thread, does."""
    save(tmp_path, made(range(5)))
    taken, over, there = threading.Event(), threading.Event(), list[Any]()

    def torn(until: threading.Event | None = None) -> int:
        fd = own(os.open(tmp_path / ".lock", os.O_RDWR), sys._getframe())
        fcntl.flock(fd, fcntl.LOCK_EX)
        taken.set()
        there.append(weakref.ref(content := made(range(2))))  # what the call has at hand
        assert content is not None
        if until is not None:
            until.wait()
        return fd

    fd = torn()
    assert there[0]() is None
    save(tmp_path, made(range(6)))
    with pytest.raises(OSError):
        os.fstat(fd)
    taken.clear()
    thread = threading.Thread(target=torn, args=[over])
    thread.start()
    taken.wait()
    with pytest.raises(StoreBusyError, match="another save"):
        save(tmp_path, made(range(7)))
    over.set()
    thread.join()
    save(tmp_path, made(range(7)))
    check_same(Saved.open(tmp_path), made(range(7)))


def test_a_frame_with_the_number_of_one_that_is_gone_is_not_taken_for_it() -> None:
    frame, thread = sys._getframe(), threading.get_ident()
    assert runs_in(id(frame), thread, frame.f_code)
    assert not runs_in(id(frame), thread, made.__code__)


def test_a_save_within_a_save_is_refused(tmp_path: Path) -> None:
    class Nested(Made):
        def rows(self, kind, part, at):
            with pytest.raises(StoreBusyError):
                save(tmp_path, made(range(3)))
            return super().rows(kind, part, at)

    content = Nested(**vars(made(range(6))))
    save(tmp_path, content)
    check_same(Saved.open(tmp_path), made(range(6)))


@pytest.mark.parametrize("failing", ["write", "fsync", "rename", "replace"])
def test_a_failed_save_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    base = save(tmp_path, made(range(8))).id
    before = files(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, made(range(20)), base=base)
    saved = Saved.open(tmp_path)
    saved.verify()
    check_same(saved, made(range(8)))
    assert before <= files(tmp_path)
    save(tmp_path, made(range(21)), base=base)
    check_same(Saved.open(tmp_path), made(range(21)))
    assert len(files(tmp_path)) == 5  # manifest, lock, columns, two kinds


@pytest.mark.parametrize("fault", ["shape", "dtype", "error"])
def test_wrong_rows_stop_a_save_before_it_takes_effect(tmp_path: Path, fault: str) -> None:
    base = save(tmp_path, made(range(8))).id
    before = files(tmp_path)

    class Faulty(Made):
        def rows(self, kind, part, at):
            rows = super().rows(kind, part, at)
            if part == "token_ids":
                if fault == "error":
                    raise RuntimeError("gone")
                return rows[:, :3] if fault == "shape" else rows.int()
            return rows

    with pytest.raises((ValueError, RuntimeError), match=r"gone|rows of 'token_ids': .*expected"):
        save(tmp_path, Faulty(**vars(made(range(20)))), base=base)
    assert files(tmp_path) == before
    check_same(Saved.open(tmp_path), made(range(8)))


def test_leftovers_are_cleaned_up_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, made(range(4)))
    staging = tmp_path / ".writing"
    staging.mkdir()
    (staging / "blocks-0123456789abcdef.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "blocks-0123456789abcdef.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "blocks-of-mine.safetensors").write_text("mine")
    save(tmp_path, made(range(4)))
    names = files(tmp_path)
    assert {"notes.txt", "blocks-of-mine.safetensors"} <= names
    assert not {".writing", "blocks-0123456789abcdef.safetensors"} & names


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="holds no saved memory but other files"):
        save(tmp_path, made(range(4)))
    assert files(tmp_path) == {"thesis.tex"}
    with pytest.raises(StoreError, match=r"a folder expected at .*, got a file"):
        save(tmp_path / "thesis.tex", made(range(4)))
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"\.lock cannot be opened"):
        save(tmp_path / "memory", made(range(4)))
    assert not (tmp_path / "elsewhere").exists()


def test_one_who_reads_keeps_what_was_opened(tmp_path: Path) -> None:
    """A save takes files away from under a reader, who notices; tensors in hand stay right."""
    content = made(range(30), kinds=(FULL,))
    save(tmp_path, content, shard_bytes=4 * FULL.nbytes)
    saved = Saved.open(tmp_path)
    batches = saved.batches()
    held = [next(batches)]
    save(tmp_path, made(range(5)))
    with pytest.raises(StoreError):
        held += batches  # the next one may have been read by now, not all of them
    for batch in held:
        for name, rows in batch.parts.items():
            assert same_bytes(rows, content.rows(0, name, batch.positions))
    for use in (saved.verify, lambda: next(saved.batches())):
        with pytest.raises(StoreError, match="saved again since it was opened"):
            use()


def test_saving_takes_the_memory_of_little_more_than_a_part(tmp_path: Path) -> None:
    """64 MiB of blocks in files of 4 MiB, from content that makes its rows when asked."""
    kind = Kind("big", {f"part.{i}": Part(torch.uint8, (1 << 18,)) for i in range(4)})

    class Big(Made):
        def rows(self, kind, part, at):
            return torch.from_numpy(bytearray_of(len(at) << 18)).view(len(at), 1 << 18)

    def bytearray_of(size: int):
        import numpy

        return numpy.ones(size, dtype=numpy.uint8)  # numpy tells tracemalloc what it takes

    content = Big(**vars(made(range(64), kinds=(kind,))))
    tracemalloc.start()
    try:
        save(tmp_path, content, shard_bytes=4 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
    assert len(Saved.open(tmp_path)) == 64
