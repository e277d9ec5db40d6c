"""An interrupt in a save or a load: what is in a folder is known, and forgotten there later."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import cmr
from cmr.integration.files import folders
from cmr.memory.store import Saved, outstanding, saver
from tests.integration.canaries import NAMES, canary

SETTINGS = {"window": 64, "threshold": 0.0, "budget": 2048}


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["behind the manifest", "behind the store"])
def test_a_save_that_counts_is_known_though_it_was_interrupted(
    where: str, llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        for session in NAMES[:2]:
            memory.read(canary(session, 100), sessions=[session])
        with monkeypatch.context() as patch:
            if where == "behind the manifest":
                patch.setattr(outstanding, "done", interrupted)
            else:
                patch.setattr(
                    folders, "save", lambda *given, **more: (saver.save(*given, **more), 1 / 0)
                )
            with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
                memory.save(tmp_path / "m")
        report = memory.forget("anna")
        assert report.files == (str(tmp_path / "m"),)
        assert [entry["name"] for entry in Saved.open(tmp_path / "m").header["sessions"]] == ["ben"]


def test_a_save_that_does_not_count_is_not_known(
    llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(canary("anna", 100), sessions=["anna"])
        memory.save(tmp_path / "m")
        before = Saved.open(tmp_path / "m").id
        with monkeypatch.context() as patch:
            patch.setattr(saver.Folder, "commit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                memory.save(tmp_path / "m")
            with pytest.raises(KeyboardInterrupt):
                memory.save(tmp_path / "other")
        assert Saved.open(tmp_path / "m").id == before
        assert memory.save(tmp_path / "m").shards_reused  # it goes on from what is there
        assert memory.forget("anna").files == (str(tmp_path / "m"),)
