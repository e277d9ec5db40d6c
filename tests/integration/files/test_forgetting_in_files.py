"""Forgetting reaches saved memories, whatever was evicted here, whoever is in the way there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import CMRWarning, StoreError, UnknownSessionError
from cmr.memory.store import Saved
from tests.integration.canaries import Traces, canary
from tests.integration.files.forgetting import (
    Letters,
    attach,
    held_by_a_reader,
    names,
    notes,
)
from tests.integration.tiny import text

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
