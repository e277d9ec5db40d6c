"""A save that goes on from the last one writes what is new."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cmr.memory.store import Kind, Part, Saved, save, saver
from tests.memory.store.made import CODES, FULL, check_same, made

TEN = 10 * FULL.nbytes


def blocks(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("blocks-*")}


def test_only_new_blocks_are_written(tmp_path: Path) -> None:
    first = save(tmp_path, made(range(40), kinds=(FULL,)), shard_bytes=TEN)
    before = blocks(tmp_path)
    content = made(range(43), kinds=(FULL,))
    second = save(tmp_path, content, base=first.id, shard_bytes=TEN)
    assert before < blocks(tmp_path) and content.asked == 3
    assert (second.shards_written, second.shards_reused) == (1, 4)
    assert second.bytes_reused == sum((tmp_path / name).stat().st_size for name in before)
    assert second.bytes_written < first.bytes_written / 2
    assert second.id != first.id
    check_same(Saved.open(tmp_path), content)


def test_columns_and_header_are_always_new(tmp_path: Path) -> None:
    content = made(range(20))
    first = save(tmp_path, content)
    later = dataclasses.replace(
        content,
        asked=0,
        session=content.session + 5,
        columns={"relevance": torch.rand(20)},
        header={"other": [1]},
    )
    save(tmp_path, later, base=first.id)
    assert later.asked == 0
    check_same(Saved.open(tmp_path), later)
    assert [b.positions.tolist() for b in Saved.open(tmp_path).batches([5])] != []


@pytest.mark.parametrize("base", [None, "0" * 32])
def test_with_another_base_everything_is_written(tmp_path: Path, base: str | None) -> None:
    save(tmp_path, made(range(20)))
    before = blocks(tmp_path)
    other = dataclasses.replace(made(range(20)), header={"of": "another"})
    report = save(tmp_path, other, base=base)
    assert other.asked == 20 and report.bytes_reused == 0
    assert not before & blocks(tmp_path)
    check_same(Saved.open(tmp_path), other)


def test_no_file_has_rows_of_blocks_that_went(tmp_path: Path) -> None:
    first = save(tmp_path, made(range(40), kinds=(FULL,)), shard_bytes=TEN)
    before = blocks(tmp_path)
    content = made(range(1, 40), kinds=(FULL,))
    report = save(tmp_path, content, base=first.id, shard_bytes=TEN)
    # Of four files the one with the block is written anew, and no other.
    assert (content.asked, report.shards_reused) == (9, 3)
    assert len(before & blocks(tmp_path)) == 3
    saved = Saved.open(tmp_path)
    check_same(saved, content)
    assert not saved.has_unnamed_rows
    held = [row for path in tmp_path.glob("blocks-*") for row in [path.stat().st_size]]
    assert sum(held) < 39.5 * FULL.nbytes + 4 * 1000


def test_files_are_small_and_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "SHARD_BYTES", TEN)
    save(tmp_path / "small", made(range(40), kinds=(FULL,)))
    assert len(blocks(tmp_path / "small")) == 4
    monkeypatch.setattr(saver, "MOST_FILES", 2)
    save(tmp_path / "large", made(range(40), kinds=(FULL,)))
    assert len(blocks(tmp_path / "large")) == 2


def test_a_block_that_changes_its_kind_is_written_anew(tmp_path: Path) -> None:
    content, limit = made(range(20)), 10 * CODES.nbytes
    first = save(tmp_path, content, shard_bytes=limit)
    sunk = made(range(20), kind=torch.ones(20, dtype=torch.int64))
    report = save(tmp_path, sunk, base=first.id, shard_bytes=limit)
    assert sunk.asked == 10 and report.shards_reused == 1
    check_same(Saved.open(tmp_path), sunk)


def test_a_kind_that_became_another_is_not_reused(tmp_path: Path) -> None:
    first = save(tmp_path, made(range(20), kinds=(FULL, CODES)))
    wider = Kind("full", {**FULL.parts, "index": Part(torch.bfloat16, (4, 7))})
    content = made(range(20), kinds=(CODES, wider), kind=1 - torch.arange(20) % 2)
    report = save(tmp_path, content, base=first.id)
    assert (content.asked, report.shards_reused) == (10, 1)  # and codes under another index
    check_same(Saved.open(tmp_path), content)


def test_many_small_saves_leave_few_files_and_write_little_twice(tmp_path: Path) -> None:
    base, written = None, 0
    for count in range(1, 65):
        content = made(range(count), kinds=(FULL,))
        report = save(tmp_path, content, base=base, shard_bytes=1000 * FULL.nbytes)
        base, written = report.id, written + content.asked
        assert len(blocks(tmp_path)) <= 7
    assert written <= 64 * 7
    check_same(Saved.open(tmp_path), content)


@pytest.mark.parametrize("harm", ["gone", "short", "header"])
def test_a_damaged_file_is_not_relied_on(tmp_path: Path, harm: str) -> None:
    first = save(tmp_path, made(range(20), kinds=(FULL,)), shard_bytes=TEN)
    path = sorted(tmp_path.glob("blocks-*"))[0]
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data[3] = 255
        path.write_bytes(data if harm == "header" else data[:-1])
    content = made(range(20), kinds=(FULL,))
    report = save(tmp_path, content, base=first.id, shard_bytes=TEN)
    assert (content.asked, report.shards_reused) == (10, 1)
    saved = Saved.open(tmp_path)
    saved.verify()
    check_same(saved, content)
