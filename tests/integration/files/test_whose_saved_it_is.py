"""Forgetting in saved memories: whose a saved session is, and what a folder holds."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import cmr
from cmr.errors import StoreError
from cmr.integration.files.content import MemoryContent
from cmr.memory.store import Saved, saver
from tests.integration.canaries import Traces, canary
from tests.integration.files.forgetting import attach, names

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
