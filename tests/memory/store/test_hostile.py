"""Whatever is wrong with a folder: a typed error that names the file, and nothing is changed."""

import os
import random
import struct
from pathlib import Path

import pytest
import torch

from cmr.errors import (
    CMRError,
    CorruptMemoryError,
    MemoryNotFoundError,
    NewerFormatError,
    StoreError,
)
from cmr.memory.store import Kind, Saved, save
from tests.memory.store import hostile
from tests.memory.store.made import FULL, check_same, made

NEWER = {"newer", "much newer"}


def snapshot(folder: Path) -> dict[str, object]:
    """Every entry of a folder and what it is."""
    out: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        inside = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        out[str(path.relative_to(folder))] = (about.st_mode, about.st_mtime_ns, inside)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "memory", made(range(24)), shard_bytes=5 * FULL.nbytes)
    return tmp_path / "memory"


@pytest.mark.parametrize("case", hostile.AT_OPENING)
def test_opening_is_refused(folder: Path, case: str) -> None:
    harm, message = hostile.AT_OPENING[case]
    harm(folder)
    before = snapshot(folder)
    error = NewerFormatError if case in NEWER else CorruptMemoryError
    with pytest.raises(error, match=message) as caught:
        Saved.open(folder)
    assert str(folder) in str(caught.value)
    assert isinstance(caught.value, (CMRError, ValueError))
    assert "anna" not in str(caught.value)
    assert snapshot(folder) == before


@pytest.mark.parametrize("case", hostile.AT_OPENING)
def test_saving_there_replaces_only_what_can_be_read(folder: Path, case: str) -> None:
    """A manifest that cannot be read is not thrown away; damaged data files are replaced."""
    hostile.AT_OPENING[case][0](folder)
    elsewhere = {k: v for k, v in snapshot(folder.parent).items() if not k.startswith("memory")}
    before = {k: v for k, v in snapshot(folder).items() if k != ".lock"}
    content = made(range(5))
    try:
        save(folder, content, base="0" * 32)
    except StoreError as error:
        assert "manifest.json" in str(error)
        assert {k: v for k, v in snapshot(folder).items() if k != ".lock"} == before
    else:
        check_same(Saved.open(folder), content)
    after = {k: v for k, v in snapshot(folder.parent).items() if not k.startswith("memory")}
    assert after == elsewhere


@pytest.mark.parametrize("at", [-1, -50, -200])
def test_a_flipped_bit_among_the_blocks_is_found(folder: Path, at: int) -> None:
    path = max(folder.glob("blocks-*"), key=lambda path: path.stat().st_size)
    path.write_bytes(hostile.flip(at)(path.read_bytes()))
    before = snapshot(folder)
    saved = Saved.open(folder)
    with pytest.raises(CorruptMemoryError, match=f"{path.name}: checksum"):
        saved.verify()
    assert snapshot(folder) == before


def test_any_flipped_bit_is_found(folder: Path) -> None:
    """Opening and verifying together leave no byte of any file unchecked."""
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        if path.name == ".lock":
            continue
        for _ in range(40):
            bad = bytearray(raw)
            bad[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            with pytest.raises(StoreError):
                Saved.open(folder).verify()
        path.write_bytes(raw)
    Saved.open(folder).verify()


def test_swapped_files_of_one_form_are_found(folder: Path) -> None:
    sizes: dict[int, Path] = {}
    for path in sorted(folder.glob("blocks-*")):
        other = sizes.setdefault(path.stat().st_size, path)
        if other != path:
            one, two = path.read_bytes(), other.read_bytes()
            path.write_bytes(two)
            other.write_bytes(one)
            break
    with pytest.raises(CorruptMemoryError, match="checksum"):
        Saved.open(folder).verify()


def test_a_file_that_vanishes_later_is_a_typed_error(folder: Path) -> None:
    saved = Saved.open(folder)
    hostile.first(folder).unlink()
    for use in (saved.verify, lambda: list(saved.batches())):
        with pytest.raises(CorruptMemoryError, match="No such file"):
            use()


def test_columns_of_impossible_values_are_refused(tmp_path: Path) -> None:
    """The checksum is right, the manifest agrees, and still it cannot be."""
    content = made(range(4), kinds=(FULL,), columns={"pinned": torch.tensor([True] * 4)})
    save(tmp_path, content)
    path = hostile.first(tmp_path, "columns")
    good = path.read_bytes()
    hostile.data(lambda raw: raw[:-1] + b"\x02", "columns")(tmp_path)
    with pytest.raises(CorruptMemoryError, match="booleans of 0 or 1"):
        Saved.open(tmp_path)
    path.write_bytes(good)
    start = good.index(struct.pack("<4q", *range(4)))  # block numbers 0, 1, 2, 3
    for numbers, message in (([0, 1, 1, 3], "one twice"), ([-1, 1, 2, 3], "from 0 on")):
        changed = good[:start] + struct.pack("<4q", *numbers) + good[start + 32 :]
        hostile.data(lambda raw, new=changed: new, "columns")(tmp_path)
        with pytest.raises(CorruptMemoryError, match=message):
            Saved.open(tmp_path)


def test_a_file_of_another_kind_of_the_same_form_is_refused(tmp_path: Path) -> None:
    save(tmp_path, made(range(4), kinds=(FULL, Kind("other", FULL.parts))))
    hostile.manifest(hostile.another_kind)(tmp_path)
    with pytest.raises(CorruptMemoryError, match="has blocks of another kind"):
        Saved.open(tmp_path)


def test_a_manifest_too_large_is_not_read(folder: Path) -> None:
    with open(folder / "manifest.json", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptMemoryError, match=r"at most \d+ bytes expected"):
        Saved.open(folder)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a file"])
def test_where_there_is_no_memory(tmp_path: Path, there: str) -> None:
    path = tmp_path / "memory"
    if there == "an empty folder":
        path.mkdir()
    elif there == "a file":
        path.write_text("x")
    with pytest.raises(MemoryNotFoundError, match=r"no saved memory at .*memory") as caught:
        Saved.open(path)
    assert isinstance(caught.value, FileNotFoundError)
    assert os.path.lexists(path) == (there != "nothing")
