"""What could not be erased at once is left out by everybody, and erased by whoever can."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from cmr.errors import CorruptMemoryError, StoreBusyError, StoreError
from cmr.memory.store import Saved, outstanding, save
from cmr.memory.store.folder import Folder
from cmr.memory.store.outstanding import Note
from tests.memory.store.made import FULL, Made, check_same, made, same_bytes
from tests.memory.store.test_forget import LIMIT, leaks, rows_of

UIDS = [f"{number:032x}" for number in (7, 8, 9)]
THEN = "e" * 32
HEADER = {
    "sessions": [
        {"name": name, "number": number, "uids": [uid]}
        for number, (name, uid) in enumerate(zip(("anna", "ben", "carl"), UIDS, strict=True))
    ]
}


def content(numbers: range = range(30), **more: object) -> Made:
    return made(numbers, kinds=(FULL,), **{"header": HEADER, **more})


def without(numbers: list[int], sessions: list[int]) -> Made:
    """The content with less in it."""
    rest = [n for n in range(30) if n not in numbers and n % 3 not in sessions]
    kept = [entry for entry in HEADER["sessions"] if entry["number"] not in sessions]
    return made(rest, kinds=(FULL,), header={"sessions": kept})


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".forget-*")]


def only_named(folder: Path) -> bool:
    """Whether a folder has the files of its manifest and the lock, and no other."""
    named = {*Saved.open(folder)._manifest.files, "manifest.json", ".lock"}
    return {path.name for path in folder.iterdir()} == named


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "m", content(), shard_bytes=LIMIT)
    return tmp_path / "m"


def note(folder: Path, numbers: list[int], sessions: list[int], **more: object) -> Note:
    """A note in the folder, for the save that is in it."""
    given = Note(
        json.loads((folder / "manifest.json").read_text())["id"],
        THEN,
        numbers,
        sessions,
        [UIDS[session] for session in sessions],
    )._replace(**more)
    outstanding.write(Folder(folder), given)
    return given


def test_it_is_left_out_at_once_and_erased_when_the_reader_is_gone(folder: Path) -> None:
    reader = Saved.open(folder)
    held = list(reader.batches())
    note(folder, [0, 5], [1])
    canaries = rows_of([0, 5, *range(1, 30, 3)])
    for _ in range(2):
        opened = Saved.open(folder)
        assert opened.unsettled and leaks(folder, canaries)
        check_same(opened, without([0, 5], [1]))
        opened.verify()
    with pytest.raises(StoreBusyError, match="is in use, so it cannot be erased: nothing was"):
        opened.settle()
    for batch in held:  # who had it open before is not disturbed
        for name, rows in batch.parts.items():
            assert same_bytes(rows, content().rows(0, name, batch.positions))
    del held, batch, rows
    opened = Saved.open(folder)
    assert not opened.unsettled and not names(folder) and not leaks(folder, canaries)
    assert opened.id == THEN, "who wrote the note knows the save again"
    check_same(opened, without([0, 5], [1]))
    assert only_named(folder)


def test_in_another_save_only_the_sessions_own_ids_tell(folder: Path) -> None:
    note(folder, [0, 5], [1])
    given = outstanding.read(Folder(folder))
    shutil.rmtree(folder)
    # Somebody else's: the same numbers, of other sessions, but for one that was loaded from there.
    sessions = [
        {"name": "anna", "number": 1, "uids": ["f" * 32]},
        {"name": "dora", "number": 2, "uids": [UIDS[1], "a" * 32]},
        {"name": "old", "number": 0},
    ]
    theirs = content(header={"sessions": sessions})
    first = save(folder, theirs, shard_bytes=LIMIT)
    outstanding.write(Folder(folder), *given.values())
    opened = Saved.open(folder)
    assert [entry["name"] for entry in opened.header["sessions"]] == ["anna", "old"]
    assert opened.numbers.tolist() == [n for n in range(30) if n % 3 != 2]
    assert opened.id not in (first.id, THEN), "whoever goes on from it has to look first"
    assert not names(folder)


def test_one_that_was_carried_out_before_its_file_could_go(folder: Path) -> None:
    """Two sessions with the same id, as they are when one is loaded twice: one was forgotten."""
    kept = {"name": "ben, again", "number": 2, "uids": [UIDS[1]]}
    save(folder, content(header={"sessions": [*HEADER["sessions"][:2], kept]}))
    note(folder, [], [1])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert Saved.open(folder).id == THEN
    note(folder, [], [1], save=manifest["id"])
    opened = Saved.open(folder)
    assert [entry["name"] for entry in opened.header["sessions"]] == ["anna", "ben, again"]
    assert len(opened) == 20 and not names(folder)


def test_what_has_expired_is_left_out_and_erased_and_the_save_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline = torch.arange(30, dtype=torch.float64) * 10 + 1000
    deadline[20:] = torch.inf
    monkeypatch.setattr("time.time", lambda: now)
    now = 900.0
    saved = dataclasses.replace(content(), columns={"deadline": deadline})
    report = save(tmp_path, saved, shard_bytes=LIMIT)
    opened = Saved.open(tmp_path)
    assert (len(opened), opened.due) == (30, 1000.0)
    now = 1045.0
    held = list(opened.batches())
    late = Saved.open(tmp_path)
    assert late.numbers.tolist() == list(range(5, 30)) and late.due == 1050.0
    assert leaks(tmp_path, rows_of([0, 4]))
    del held
    late = Saved.open(tmp_path)
    assert not leaks(tmp_path, rows_of([0, 1, 2, 3, 4])) and leaks(tmp_path, rows_of([5]))
    assert late.id == report.id, "a later save goes on from it"
    late.verify()
    now = 5000.0
    assert Saved.open(tmp_path).due == torch.inf and len(Saved.open(tmp_path)) == 10


def test_what_a_killed_save_left_goes_with_the_next_opening(folder: Path) -> None:
    orphans = [
        ".writing/blocks-0123456789abcdef.safetensors",
        "blocks-0123456789abcdef.safetensors",
        ".forget-0123456789abcdef.part",
    ]
    for name in orphans:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(rows_of([0])[0] * 9)
    (folder / "notes.txt").write_text("mine")
    with Folder(folder).writing():  # a save is under way: what is there is its own
        (folder / ".writing" / "x").write_text("half")
        Saved.open(folder)
        assert (folder / ".writing" / "x").exists() and (folder / orphans[1]).exists()
    Saved.open(folder)
    (folder / "notes.txt").unlink()
    assert only_named(folder)


def test_where_nothing_may_be_written_it_is_left_out_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(folder, [0], [])
    real = os.open

    def read_only(path, flags, *more, **others):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", read_only)
    opened = Saved.open(folder)
    assert 0 not in opened.numbers and opened.unsettled and len(opened) == 29


def test_what_is_noted_is_not_saved_again(folder: Path) -> None:
    """Somebody else who goes on from there has it still, and is told."""
    reader = list(Saved.open(folder).batches())
    first = note(folder, [0, 5], [1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StoreError, match=r"what is to be forgotten there may be in.*blocks \[0, 1"):
        save(folder, content(range(33)), base=first.save)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    more = without([0, 5], [1])
    with pytest.raises(StoreBusyError, match="is in use, so it cannot be erased"):
        save(folder, more, base=first.save)
    del reader
    save(folder, more, base=first.save, shard_bytes=LIMIT)
    check_same(Saved.open(folder), more)
    assert not leaks(folder, rows_of([0, 5, 1])) and only_named(folder)


def test_under_other_numbers_it_cannot_be_told_what_is_noted(folder: Path) -> None:
    reader = list(Saved.open(folder).batches())
    note(folder, [0], [])
    with pytest.raises(StoreError, match=r"may be in what is saved \(blocks, by other numbers"):
        save(folder, content(range(100, 103)))
    del reader
    assert 0 not in Saved.open(folder).numbers
    save(folder, content(range(100, 103)))


def test_a_session_that_is_noted_is_in_no_later_save(folder: Path) -> None:
    note(folder, [], [1])
    with pytest.raises(StoreError, match="forget it here as well"):
        save(folder, content(range(100, 130)))
    kept = [entry for entry in HEADER["sessions"] if entry["number"] != 1]
    save(folder, content(range(0, 30, 3), header={"sessions": kept}))
    assert len(Saved.open(folder)) == 10 and not names(folder)


def test_a_note_that_comes_while_a_save_is_written_holds_for_it(folder: Path) -> None:
    class Late(Made):
        """Somebody forgets block 7 in the folder while this is saved to it."""

        told = False

        def rows(self, kind, part, at):
            if not Late.told:
                Late.told = True
                note(folder, [7], [])
            return super().rows(kind, part, at)

    first = Saved.open(folder).id
    report = save(folder, Late(**vars(content(range(33)))), base=first)
    assert Late.told and names(folder)
    opened = Saved.open(folder)
    assert opened.numbers.tolist() == [n for n in range(33) if n != 7]
    assert report.blocks == 33 and not leaks(folder, rows_of([7])) and not names(folder)


def test_only_what_is_expected_is_replaced(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first = Saved.open(folder).id
    with pytest.raises(StoreError, match=rf"{'d' * 32} expected, got {first}.*replace=True"):
        save(folder, content(range(3)), base="d" * 32, only=["d" * 32])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save(folder, content(range(3)), only=["d" * 32, first])


@pytest.mark.parametrize(
    "change",
    [
        {"numbers": ["5"]},
        {"numbers": [-1]},
        {"numbers": [True]},
        {"numbers": 5},
        {"uids": ["anna"]},
        {"save": "../x"},
        {"then": None},
        {"format": "other"},
        {"format_version": 2},
    ],
)
def test_a_note_that_says_something_else_is_refused(folder: Path, change: dict) -> None:
    """What it was about cannot be told, so nothing is shown."""
    note(folder, [0], [])
    path = folder / names(folder)[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptMemoryError, match=r"\.forget-"):
        Saved.open(folder)
    path.unlink()
    path.symlink_to(folder / "manifest.json")
    with pytest.raises(CorruptMemoryError, match=r"\.forget-"):
        Saved.open(folder)


def test_of_an_encrypted_memory_a_note_has_numbers_alone(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    key = bytes(range(32))
    first = save(tmp_path, content(), key=key)
    held = list(Saved.open(tmp_path, key=key).batches())
    del held  # of an encrypted one in memory of its own: nobody is in the way
    outstanding.write(Folder(tmp_path), Note(first.id, THEN, [0], [1], [UIDS[1]]))
    table = json.loads((tmp_path / names(tmp_path)[0]).read_text())
    assert set(table) == {
        "format", "format_version", "save", "then", "numbers", "sessions", "uids",
    }  # fmt: skip
    opened = Saved.open(tmp_path, key=key)
    opened.verify()
    check_same(opened, without([0], [1]))
    assert not names(tmp_path) and opened.id == THEN


@pytest.mark.parametrize(
    "header",
    [{}, {"sessions": {"anna": 0}}, {"sessions": ["anna", {"number": [1]}, {"number": 1}]}],
)
def test_whatever_the_header_says_the_blocks_are_left_out(tmp_path: Path, header: dict) -> None:
    save(tmp_path, content(header=header))
    note(tmp_path, [0], [1])
    opened = Saved.open(tmp_path)
    assert opened.numbers.tolist() == [n for n in range(1, 30) if n % 3 != 1]
    assert {"number": 1} not in list(opened.header.get("sessions", []))
