"""Forgetting reaches saved memories, whatever was evicted here, whoever is in the way there."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import CMRWarning, StoreError, UnknownSessionError
from cmr.integration.files.content import MemoryContent
from cmr.memory.store import Saved, saver
from tests.integration.canaries import Traces, canary
from tests.integration.tiny import text

SETTINGS: dict[str, Any] = {"window": 64, "threshold": 0.0, "budget": 1024}


class Letters:
    """A tokenizer of one letter a token."""

    @staticmethod
    def decode(ids: list[int], **_: Any) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)

    @staticmethod
    def get_vocab() -> dict[str, int]:
        return {chr(0x4E00 + token): token for token in range(200)}


def attach(model: nn.Module, **settings: Any) -> cmr.Memory:
    return cmr.attach(model, **{**SETTINGS, **settings})


def names(folder: Path) -> list[str]:
    return [entry["name"] for entry in Saved.open(folder).header["sessions"]]


def notes(folder: Path) -> list[Path]:
    return list(folder.glob(".forget-*"))


def held_by_a_reader(folder: Path) -> list[Any]:
    """Somebody reads the folder as long as this is kept."""
    return list(Saved.open(folder).batches())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be set."""
    now = [1_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    return now


# -- what was evicted here -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["token ids", "text", "ids", "older_than", "session"])
@pytest.mark.parametrize("loaded", [False, True])
def test_what_was_evicted_here_is_forgotten_in_files(
    how: str, loaded: bool, llama: nn.Module, tmp_path: Path, clock: list[float]
) -> None:
    """Whether this memory saved it, or loaded it under other numbers."""
    folder, secret = tmp_path / "m", canary("anna", 64, seed=5)
    with attach(llama, budget=320, tokenizer=Letters()) as memory:
        memory.read(secret, sessions=["anna"])
        traces = Traces(memory, "anna")
        memory.read(canary("ben", 64), sessions=["ben"])
        memory.save(folder)
        blocks = [block.id for block in memory.inspect("anna")]
        if loaded:
            memory.clear()
            memory.load(folder)
            blocks = [block.id for block in memory.inspect("anna")]
            assert blocks[0] > 4
        clock[0] += 100
        memory.read(canary("anna", 640, seed=6), sessions=["anna"])
        assert not set(blocks) & {block.id for block in memory.inspect("anna")}
        assert traces.in_folder(folder)
        wanted: dict[str, Any] = {
            "token ids": {"text": secret[4:40].tolist()},
            "text": {"text": Letters.decode(secret[4:40].tolist())},
            "ids": {"ids": blocks},
            "older_than": {"older_than": 50},
            "session": {},
        }[how]
        report = memory.forget("anna", **wanted)
        assert report.files == (str(folder.resolve()),) and not report.outstanding
        assert (report.blocks > 0) == (how == "session")
        assert not traces.in_folder(folder) and not notes(folder)
        assert names(folder) == (["ben"] if how == "session" else ["anna", "ben"])
        assert len(Saved.open(folder)) == 2, "what is Ben's"
        if how == "ids":
            with pytest.raises(ValueError, match="ids: numbers of stored blocks expected"):
                memory.forget(ids=blocks)


def test_the_half_of_a_span_that_is_still_here_goes_with_the_half_in_a_file(
    llama: nn.Module, tmp_path: Path
) -> None:
    """Here nothing tells that it was a part of it any more."""
    ids = text(320)
    secret = torch.tensor([11, 12, 13, 11, 12, 14])
    ids[29:35] = secret  # from the first block into the second
    with attach(llama, budget=320) as memory:
        memory.read(ids)
        memory.save(tmp_path / "m")
        memory.read(text(32, seed=1))
        assert memory.inspect()[0].id == 2
        report = memory.forget(text=secret)
        assert report.blocks == 1 and report.files
        assert memory.inspect()[0].id == 3
        assert 1 not in (left := Saved.open(tmp_path / "m").numbers) and 2 not in left
        assert len(left) == 8
        # Told to leave files alone, it does not look into them either.
        memory.save(tmp_path / "n")
        memory.forget(text=ids[70:75], files=False)
        assert 3 in Saved.open(tmp_path / "n").numbers


def test_a_number_that_no_file_has_either_changes_nothing(llama: nn.Module, tmp_path: Path) -> None:
    with attach(llama, budget=320) as memory:
        memory.read(canary("anna", 64), sessions=["anna"])
        memory.save(tmp_path / "m")
        memory.read(canary("anna", 320, seed=1), sessions=["anna"])
        memory.read(canary("ben", 64), sessions=["ben"])
        before = Saved.open(tmp_path / "m").id
        with pytest.raises(ValueError, match=r"expected .*got \[99\]"):
            memory.forget(ids=[1, 2, 99])
        with pytest.raises(ValueError, match=r"expected .*got \[1\]"):
            memory.forget("ben", ids=[1])  # in the file it is Anna's
        with pytest.raises(ValueError, match=r"expected .*got \[1\]"):
            memory.forget(ids=[1], files=False)
        assert Saved.open(tmp_path / "m").id == before
        memory.forget("anna", ids=[1, 2])
        assert len(Saved.open(tmp_path / "m")) == 0


# -- who is in the way ---------------------------------------------------------------------------

RETRIES: dict[str, Callable[[cmr.Memory, Path], Any]] = {
    "forget it again": lambda memory, folder: memory.forget("anna"),
    "forget another": lambda memory, folder: memory.forget("carl"),
    "clear": lambda memory, folder: memory.clear("carl"),
    "save": lambda memory, folder: memory.save(folder / "w"),
    "load": lambda memory, folder: memory.load(folder / "y", sessions=["dora"]),
    "consolidate": lambda memory, folder: memory.consolidate(),
    "inspect": lambda memory, folder: memory.inspect(),
    "save there": lambda memory, folder: memory.save(folder / "x"),
    "somebody else": lambda memory, folder: Saved.open(folder / "x"),
}


@pytest.mark.parametrize("retry", RETRIES)
def test_a_folder_that_is_read_stops_no_other_and_is_done_later(
    retry: str, llama: nn.Module, tmp_path: Path
) -> None:
    with attach(llama) as memory:
        for name in ("anna", "ben", "carl", "dora"):
            memory.read(canary(name, 96), sessions=[name])
        for name in "xyz":
            memory.save(tmp_path / name)
        memory.clear("dora")
        traces = Traces(memory, "anna")
        reader = held_by_a_reader(tmp_path / "x")
        with pytest.warns(CMRWarning, match=r"what was forgotten is still in .*/x \(.*is in use"):
            report = memory.forget("anna")
        assert report.blocks == 3 and report.sessions == ("anna",)
        assert [Path(where).name for where in report.files] == ["y", "z"]
        assert [Path(where).name for where in report.outstanding] == ["x"]
        assert memory.outstanding == report.outstanding
        assert not memory._files._owed[str(tmp_path / "x")].demands, "the folder says it itself"
        assert not traces.in_folder(tmp_path / "y")
        # Nobody sees it there, and the note says no name.
        assert names(tmp_path / "x") == ["ben", "carl", "dora"] == names(tmp_path / "y")
        assert traces.in_folder(tmp_path / "x")
        assert all(b"anna" not in path.read_bytes() for path in notes(tmp_path / "x"))
        del reader
        again = RETRIES[retry](memory, tmp_path)
        assert not traces.in_folder(tmp_path, "anna") and not notes(tmp_path / "x")
        assert not traces.in_process()
        if retry != "somebody else":
            assert memory.outstanding == {}
        if retry == "forget it again":
            assert (again.blocks, again.outstanding) == (0, {}) and len(again.files) == 1
        with pytest.raises(UnknownSessionError):
            memory.forget("ann")
        memory.inspect()
        with pytest.raises(UnknownSessionError):
            memory.forget("anna")
        memory.save(tmp_path / "x")  # it knows it again, whoever erased it
        assert "anna" not in names(tmp_path / "x")


@pytest.mark.filterwarnings("ignore::cmr.errors.CMRWarning")
def test_what_is_noted_does_not_come_back_by_loading(llama: nn.Module, tmp_path: Path) -> None:
    with attach(llama) as memory:
        memory.read(torch.stack([canary("anna", 96), canary("ben", 96)]), sessions=["anna", "ben"])
        memory.save(tmp_path)
        reader = held_by_a_reader(tmp_path)
        memory.forget("anna")
        memory.forget("ben", ids=[4])
    with cmr.load(tmp_path, llama) as memory:
        assert memory.sessions == ["ben"] and len(memory.inspect()) == 2
        assert reader and notes(tmp_path)


@pytest.mark.filterwarnings("ignore::cmr.errors.CMRWarning")
@pytest.mark.parametrize("how", ["session", "ids", "text"])
def test_a_folder_that_cannot_be_opened_stops_no_other_and_is_done_when_it_can(
    how: str, llama: nn.Module, tmp_path: Path
) -> None:
    with attach(llama) as memory:
        ids = canary("anna", 96)
        memory.read(ids, sessions=["anna"])
        memory.read(canary("ben", 96), sessions=["ben"])
        for name in "pq":
            memory.save(tmp_path / name)
        traces = Traces(memory, "anna")
        manifest = tmp_path / "p" / "manifest.json"
        good = manifest.read_bytes()
        manifest.write_text("{}")
        wanted: dict[str, Any] = {"session": {}, "ids": {"ids": [1, 2, 3]}, "text": {"text": ids}}
        report = memory.forget("anna", **wanted[how])
        assert "'format' is missing" in report.outstanding[str(tmp_path / "p")]
        assert not traces.in_folder(tmp_path / "q") and traces.in_folder(tmp_path / "p")
        if how == "session":
            again = memory.forget("anna")
            assert (again.blocks, again.files) == (0, ()) and len(again.outstanding) == 1
        with pytest.raises(StoreError):
            memory.save(tmp_path / "p")
        manifest.write_bytes(good)
        opened = Saved.open(tmp_path / "p")
        assert len(opened) == 3 and not traces.in_folder(tmp_path / "p")
        assert not notes(tmp_path / "p")
        memory.inspect()
        assert memory.outstanding == {}


@pytest.mark.filterwarnings("ignore::cmr.errors.CMRWarning")
def test_a_folder_under_another_key_is_outstanding(llama: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    keys = bytes(range(32)), bytes(32)
    with attach(llama) as memory:
        memory.read(canary("anna", 96), sessions=["anna"])
        memory.read(canary("ben", 96), sessions=["ben"])
        memory.save(tmp_path / "m", key=keys[0])
        memory.detach()
        with cmr.load(tmp_path / "m", llama, key=keys[0]) as other:
            other.save(tmp_path / "other", key=keys[1])
        (tmp_path / "m").rename(tmp_path / "old")
        (tmp_path / "other").rename(tmp_path / "m")
        report = memory.forget("anna")
        assert "the key is not the one" in report.outstanding[str(tmp_path / "m")]
        (raw,) = [path.read_bytes() for path in notes(tmp_path / "m")]
        assert b"anna" not in raw
        opened = Saved.open(tmp_path / "m", key=keys[1])
        assert [entry["name"] for entry in opened.header["sessions"]] == ["ben"]
        assert len(opened) == 3 and not notes(tmp_path / "m")


@pytest.mark.parametrize("where", ["owe", "tell", "settle", "_write_down"])
def test_a_forget_that_is_interrupted_is_finished_here_at_once_and_in_files_by_the_next_call(
    where: str, llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attach(llama) as memory:
        for name in ("anna", "ben"):
            memory.read(canary(name, 96), sessions=[name])
        for folder in "xy":
            memory.save(tmp_path / folder)
        traces, real = Traces(memory, "anna"), getattr(memory._files, where)

        def interrupted(*given: Any) -> None:
            monkeypatch.setattr(memory._files, where, real)
            raise KeyboardInterrupt

        monkeypatch.setattr(memory._files, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            memory.forget("anna")
        assert memory.sessions == ["ben"] and not traces.in_process()
        assert set(memory.outstanding) == {str(tmp_path / folder) for folder in "xy"}
        memory.inspect()
        assert not memory.outstanding and not traces.in_folder(tmp_path, "anna")


# -- whose it is ---------------------------------------------------------------------------------


def test_what_somebody_else_saved_there_is_not_ours_by_its_name(
    llama: nn.Module, tmp_path: Path
) -> None:
    first = attach(llama)
    first.read(canary("anna", 96))
    first.save(tmp_path)
    first.detach()
    with attach(llama) as other:
        other.read(canary("ben", 96))
        other.save(tmp_path)
    first.reattach()
    assert first.forget("0").files == ()
    saved = Saved.open(tmp_path)
    assert names(tmp_path) == ["0"] and len(saved) == 3
    first.detach()


@pytest.mark.parametrize("how", ["session", "ids", "text", "older_than"])
def test_what_somebody_else_loaded_from_ours_and_saved_again_is(
    how: str, llama: nn.Module, tmp_path: Path, clock: list[float]
) -> None:
    """Under another name and other numbers, with more text behind it."""
    first = attach(llama)
    ids = canary("anna", 96)
    first.read(ids, sessions=["anna"])
    first.save(tmp_path)
    traces = Traces(first, "anna")
    first.detach()
    clock[0] += 100
    with attach(llama) as other:
        other.read(canary("ben", 64), sessions=["ben"])
        other.load(tmp_path)
        other.rename("anna", "dora")
        other.read(canary("carl", 64), sessions=["dora"])
        other.save(tmp_path, replace=True)
    first.reattach()
    wanted: dict[str, Any] = {
        "session": {},
        "ids": {"ids": [1, 2, 3]},
        "text": {"text": ids},
        "older_than": {"older_than": 50},
    }
    report = first.forget("anna", **wanted[how])
    assert report.files == (str(tmp_path),)
    assert not traces.in_folder(tmp_path)
    assert names(tmp_path) == (["ben"] if how == "session" else ["ben", "dora"])
    assert len(Saved.open(tmp_path)) == (2 if how == "session" else 4)
    first.detach()


def test_a_copy_is_another_session_and_what_was_joined_is_one(
    llama: nn.Module, tmp_path: Path
) -> None:
    with attach(llama) as memory:
        for name in ("anna", "ben", "carl"):
            memory.read(canary(name, 64), sessions=[name])
        memory.fork("anna", "copy")
        memory.save(tmp_path)
        uids = {info.name: info.uids for info in memory._core.table.infos()}
        assert len(set(uids.values())) == 4
        memory.merge("ben", into="carl")
        traces = Traces(memory, "carl")  # of both: Ben's text, too
        memory.forget("anna")
        assert names(tmp_path) == ["ben", "carl", "copy"]
        memory.forget("carl")
        assert names(tmp_path) == ["copy"] and not traces.in_folder(tmp_path)
        assert len(Saved.open(tmp_path)) == 2


def test_a_session_keeps_its_ids_through_files_and_names(llama: nn.Module, tmp_path: Path) -> None:
    with attach(llama) as memory:
        memory.read(canary("anna", 64), sessions=["anna"])
        memory.read(canary("ben", 64), sessions=["ben"])
        memory.merge("ben", into="anna")
        (info,) = memory._core.table.infos()
        assert len(info.uids) == 2 and all(len(uid) == 32 for uid in info.uids)
        memory.rename("anna", "dora")
        memory.save(tmp_path)
    with cmr.load(tmp_path, llama) as memory:
        (again,) = memory._core.table.infos()
        assert again.uids == info.uids and again.name == "dora"


def test_of_one_loaded_twice_only_the_one_that_is_meant_goes(
    llama: nn.Module, tmp_path: Path
) -> None:
    with attach(llama) as memory:
        memory.read(canary("ben", 64), sessions=["ben"])
        memory.save(tmp_path / "m")
        memory.rename("ben", "benjamin")
        memory.load(tmp_path / "m")
        memory.save(tmp_path / "both")
        memory.forget("ben")
        assert names(tmp_path / "both") == ["benjamin"] and names(tmp_path / "m") == []
        assert len(memory.inspect("benjamin")) == len(Saved.open(tmp_path / "both")) == 2


def test_one_of_that_name_that_was_only_cleared_here_goes_from_the_file(
    llama: nn.Module, tmp_path: Path
) -> None:
    with attach(llama) as memory:
        memory.read(canary("anna", 64), sessions=["anna"])
        memory.read(canary("ben", 64), sessions=["ben"])
        memory.save(tmp_path)
        traces = Traces(memory, "anna")
        memory.clear("anna")
        memory.rename("ben", "ben, renamed")
        memory.read(canary("carl", 64), sessions=["anna"])
        memory.read(canary("carl", 64), sessions=["ben"])
        memory.forget("ben")
        assert names(tmp_path) == ["anna", "ben"], "that one lives on under another name"
        memory.forget("anna")
        assert names(tmp_path) == ["ben"] and not traces.in_folder(tmp_path)


def test_a_folder_that_was_loaded_in_part_is_still_known_whole(
    llama: nn.Module, tmp_path: Path
) -> None:
    with attach(llama) as memory:
        for name in ("anna", "ben"):
            memory.read(canary(name, 64), sessions=[name])
        memory.save(tmp_path)
        memory.clear("ben")
        memory.load(tmp_path, sessions=["ben"])
        memory.forget(ids=[1])
        assert Saved.open(tmp_path).numbers.tolist() == [2, 3, 4]
        memory.forget("ben")
        assert names(tmp_path) == ["anna"]
        memory.forget("anna")
        assert names(tmp_path) == []


@pytest.mark.parametrize("ours", [True, False])
def test_sessions_of_older_versions_are_known_by_numbers_or_names(
    ours: bool, llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryContent.__init__

    def older(self: MemoryContent, *args: Any) -> None:
        real(self, *args)
        for entry in self.header["sessions"]:
            entry["uids"] = []  # as such a folder is read
        self.uids = frozenset()

    monkeypatch.setattr(MemoryContent, "__init__", older)
    memory = attach(llama)
    for name in ("anna", "ben"):
        memory.read(canary(name, 64), sessions=[name])
    memory.save(tmp_path)
    memory.rename("anna", "dora")
    if not ours:
        memory.detach()
        with attach(llama) as other:
            other.read(canary("carl", 64), sessions=["dora"])
            other.save(tmp_path)
        memory.reattach()
    memory.forget("dora")
    assert names(tmp_path) == (["ben"] if ours else [])
    memory.detach()


# -- what has expired ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["inspect", "consolidate", "forget", "save", "clear", "load"])
def test_what_has_expired_goes_from_files(
    how: str, llama: nn.Module, tmp_path: Path, clock: list[float]
) -> None:
    with attach(llama) as memory:
        memory.read(canary("ben", 64), sessions=["ben"])
        memory.save(tmp_path / "given")
        memory.clear()
        with memory.session("anna", create=True, ttl=10):
            memory.read(canary("anna", 64))
        memory.read(canary("carl", 64), sessions=["carl"])
        memory.save(tmp_path / "m")
        traces = Traces(memory, "anna")
        clock[0] += 11
        assert traces.in_folder(tmp_path)
        {
            "inspect": memory.inspect,
            "consolidate": memory.consolidate,
            "forget": lambda: memory.forget("carl", ids=[5]),
            "save": lambda: memory.save(tmp_path / "n"),
            "clear": lambda: memory.clear("carl"),
            "load": lambda: memory.load(tmp_path / "given"),
        }[how]()
        assert not traces.in_folder(tmp_path)
        saved = Saved.open(tmp_path / "m")
        assert len(saved) == (1 if how == "forget" else 2) and names(tmp_path / "m")[0] == "anna"
        memory.save(tmp_path / "m")


def test_where_nothing_is_due_no_folder_is_looked_at(
    llama: nn.Module, tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with attach(llama, ttl=10) as memory:
        memory.read(canary("anna", 64))
        memory.save(tmp_path)
        opened: list[Any] = []
        real = Saved.open
        monkeypatch.setattr(Saved, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
        clock[0] += 9
        memory.inspect()
        llama(text(1, 80))
        assert not opened
        clock[0] += 2
        # Never in a forward, however often it looks what has expired.
        llama(text(1, 80))
        with memory._core.lock:
            memory.inspect()
        assert not opened and memory.stats()["expired_blocks"] == 2
        memory.inspect()
        assert len(opened) == 1
        memory.inspect()
        assert len(opened) == 1 and len(real(tmp_path)) == 0


# -- what a folder holds -------------------------------------------------------------------------


def test_a_folder_saved_again_with_fewer_sessions_holds_nothing_of_the_others(
    llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "SHARD_BYTES", 1 << 16)
    with attach(llama, budget=640) as memory:
        memory.read(canary("anna", 320), sessions=["anna"])
        memory.read(canary("ben", 320), sessions=["ben"])
        traces = Traces(memory, "ben")
        memory.save(tmp_path)
        report = memory.save(tmp_path, sessions=["anna"])
        assert not traces.in_folder(tmp_path, "ben")
        assert report.shards_reused > 0 and report.bytes_written < 300_000
        memory.save(tmp_path)
        assert traces.in_folder(tmp_path)
        memory.read(canary("carl", 640), sessions=["carl"])  # what Ben had above his share goes
        here = {block.id for block in memory.inspect()}
        memory.save(tmp_path)
        saved = Saved.open(tmp_path)
        assert set(saved.numbers.tolist()) == here
        rows = [n for shard in saved._manifest.shards for n in shard.numbers]
        assert sorted(rows) == sorted(here)


def test_somebody_elses_save_is_replaced_only_when_that_is_said(
    llama: nn.Module, tmp_path: Path
) -> None:
    first = attach(llama)
    first.read(canary("anna", 96), sessions=["anna"])
    first.save(tmp_path)
    first.detach()
    with cmr.load(tmp_path, llama) as other:
        other.read(canary("ben", 96), sessions=["ben"])
        other.save(tmp_path)
        first_id = Saved.open(tmp_path).id
        other.save(tmp_path)
    first.reattach()
    with pytest.raises(StoreError, match=r"Somebody else has saved or forgotten there.*replace="):
        first.save(tmp_path)
    assert names(tmp_path) == ["anna", "ben"] and Saved.open(tmp_path).id != first_id
    first.save(tmp_path, replace=True)
    assert names(tmp_path) == ["anna"]
    first.save(tmp_path)
    first.detach()


def test_a_save_that_was_interrupted_beyond_help_follows_the_store_no_longer(
    llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with attach(llama, budget=320) as memory:
        memory.read(canary("anna", 320), sessions=["anna"])
        for kept in (False, True):
            with monkeypatch.context() as patch:
                # Before the first part is given, and then on the way out.
                patch.setattr(MemoryContent, "rows", interrupted)
                patch.setattr(MemoryContent, "__exit__", interrupted)
                try:
                    memory.save(tmp_path)
                except KeyboardInterrupt as error:
                    trace = error.__traceback__
            assert memory._core.ring.on_change is not None
            if not kept:
                del trace
                gc.collect()
                memory.read(canary("ben", 32), sessions=["ben"])  # something leaves its slot
                assert memory._core.ring.on_change is None
                continue
            # Somebody holds the traceback, as a console does: the next one to take turns ends it.
            content = memory._files._saving()
            memory.read(canary("ben", 32), sessions=["ben"])
            assert content._aside
            memory.forget("anna")
            assert memory._core.ring.on_change is None and not content._aside
            del trace, content
        assert memory.save(tmp_path).blocks == len(memory.inspect())


def test_headers_and_notes_agree_on_the_sessions_ids(llama: nn.Module, tmp_path: Path) -> None:
    with attach(llama) as memory:
        memory.read(canary("anna", 64), sessions=["anna"])
        memory.save(tmp_path)
        (entry,) = json.loads((tmp_path / "manifest.json").read_text())["header"]["sessions"]
        (info,) = memory._core.table.infos()
        assert entry["uids"] == list(info.uids)
