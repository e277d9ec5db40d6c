"""Two processes on one folder: who waits, who is refused, and what a reader sees meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmr.errors import CorruptMemoryError, StoreBusyError, StoreError
from cmr.memory.store import Saved, save
from tests.memory.store.killing import LIMIT, content
from tests.memory.store.made import Made, check_same, made

ROOT = Path(__file__).parents[3]
# Does what it is told, a line each, and answers with a line.
OTHER = """
import sys, torch
torch.set_num_threads(1)
from cmr.errors import StoreError
from cmr.memory.store import Saved, save
from tests.memory.store.killing import LIMIT, content
from tests.memory.store.made import Made
folder, held = sys.argv[1], []

class Slow(Made):
    waited = False
    def rows(self, *given):
        if not Slow.waited:
            Slow.waited = True
            print("inside", flush=True)
            assert sys.stdin.readline() == "go on\\n"
        return super().rows(*given)

def step():
    return Saved.open(folder).header["step"]

for line in sys.stdin:
    what = line.split()
    try:
        if what[0] == "save":
            base = Saved.open(folder)
            save(folder, content(base.header["step"] + 1), base=base.id, shard_bytes=LIMIT)
        elif what[0] == "slowly":
            Slow.waited = False
            wanted = content(step() + 1)
            save(folder, Slow(**vars(wanted)), shard_bytes=LIMIT)
        elif what[0] == "on":
            for _ in range(int(what[1])):
                saved = Saved.open(folder)
                wanted = content(saved.header["step"] + 1)
                save(folder, wanted, base=saved.id, shard_bytes=LIMIT)
        elif what[0] == "read":
            held = list(Saved.open(folder).batches())
        elif what[0] == "let":
            held = []
        print("done", flush=True)
    except StoreError as error:
        print(type(error).__name__, str(error), flush=True)
"""


class Other:
    """Another process on the folder."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    save(tmp_path, content(0), shard_bytes=LIMIT)
    process = Other(tmp_path)
    yield process
    process.kill()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_who_saves_forgets_or_tidies_beside_a_save_changes_nothing(
    tmp_path: Path, other: Other
) -> None:
    assert other.ask("slowly") == "inside"
    before = files(tmp_path)
    with pytest.raises(StoreBusyError, match="another save to it is running"):
        save(tmp_path, made(range(3)), shard_bytes=LIMIT)
    saved = Saved.open(tmp_path)
    for change in (lambda: saved.forget(saved.numbers[:0]), saved.settle):
        with pytest.raises(StoreBusyError, match="another save to it is running"):
            change()
    check_same(Saved.open(tmp_path), content(0))
    assert files(tmp_path) == before
    assert other.ask("go on") == "done"
    check_same(Saved.open(tmp_path), content(1))
    with pytest.raises(StoreError, match="saved again since it was opened"):
        saved.forget(saved.numbers[:0])


def test_one_that_is_killed_in_a_save_leaves_nothing_to_whoever_opens_next(
    tmp_path: Path, other: Other
) -> None:
    assert other.ask("slowly") == "inside"
    assert (tmp_path / ".writing").exists()
    other.kill()
    check_same(Saved.open(tmp_path), content(0))
    named = {*Saved.open(tmp_path)._manifest.files, "manifest.json", ".lock"}
    assert {path.name for path in tmp_path.iterdir()} == named


def test_who_goes_on_from_a_save_that_is_no_longer_there_is_refused(
    tmp_path: Path, other: Other
) -> None:
    mine = Saved.open(tmp_path).id
    assert other.ask("save") == "done"
    with pytest.raises(StoreError, match=rf"the save {mine} expected, got "):
        save(tmp_path, content(5), base=mine, only=[mine], shard_bytes=LIMIT)
    check_same(Saved.open(tmp_path), content(1))


def test_a_reader_of_another_process_is_not_disturbed(tmp_path: Path, other: Other) -> None:
    assert other.ask("read") == "done"
    saved = Saved.open(tmp_path)
    with pytest.raises(StoreBusyError, match="is in use, so it cannot be erased"):
        saved.forget((saved.session == 1).nonzero().view(-1), shard_bytes=LIMIT)
    assert other.ask("let") == "done"
    saved.forget((saved.session == 1).nonzero().view(-1), shard_bytes=LIMIT)


def test_beside_saves_a_reader_sees_one_save_whole_or_is_told(tmp_path: Path, other: Other) -> None:
    other.tell("on 60")
    whole = told = last = 0
    steps = set()
    while last < 60:
        try:
            saved = Saved.open(tmp_path)
            saved.verify()
            last = saved.header["step"]
            check_same(saved, content(last))
            whole += 1
            steps.add(last)
        except StoreError as error:
            # Never damage: either it was replaced, or it is gone since it was opened.
            assert not isinstance(error, CorruptMemoryError) or not saved.is_current, error
            told += 1
    assert other.answer() == "done", "who reads is in nobody's way"
    assert whole >= 3 and len(steps) >= 2, (whole, told)


def test_two_that_save_on_and_on_lose_nothing(tmp_path: Path, other: Other) -> None:
    """Each goes on from what the other has saved, or is refused and tries again."""
    other.tell("on 20")
    mine = 0
    for _ in range(2000):
        try:
            base = Saved.open(tmp_path)
            wanted: Made = content(base.header["step"] + 1)
            save(tmp_path, wanted, base=base.id, only=[base.id], shard_bytes=LIMIT)
            mine += 1
        except StoreError:
            continue
        if mine == 20:
            break
    theirs = other.answer()
    assert mine == 20 and (theirs == "done" or theirs.startswith("StoreBusyError")), theirs
    saved = Saved.open(tmp_path)
    saved.verify()
    check_same(saved, content(saved.header["step"]))
    assert saved.header["step"] >= 20
