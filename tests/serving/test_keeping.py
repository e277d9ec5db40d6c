"""The memory outlives the server that was told."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import cmr
from cmr.errors import StoreError
from cmr.integration.memory import Memory
from cmr.serving.app import create_app
from cmr.serving.engines.storing import Storing
from cmr.serving.keeping import Keeping
from cmr.serving.settings import ServerSettings
from tests.serving.served import served, until

TEXT = "The gate code is 4712. " * 3


def test_a_server_goes_on_where_the_last_one_ended(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with served(*tiny, folder=folder) as server:
        server.say(TEXT)
        server.say("Only for now.", "guest", ephemeral=True)
        server.idle()
        stored = server.stored()
        assert "4712" in stored and not folder.exists()
    with served(*tiny, folder=folder) as server:
        assert server.memory.sessions == ["local/anna"] and server.stored() == stored
        assert "code" in server.say("Which code?").json()["memory"]["recalled"][0]["text"]
        assert server.http.delete("/v1/memory/sessions/anna").status_code == 200
        # Erased in the folder at once, not by the next save.
        with pytest.raises(cmr.UnknownSessionError):
            server.memory.load(folder, sessions=["local/anna"])
    with served(*tiny, folder=folder) as server:
        assert server.memory.sessions == []


def test_it_is_saved_while_it_runs_and_only_where_something_changed(
    tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    often = ServerSettings(save_every=0.1, max_tokens=8)
    with served(*tiny, settings=often, folder=tmp_path / "kept") as server:
        keeping = server.service.keeping
        server.say(TEXT)
        server.idle()
        # Once: an answer's end and its batch's end are one change, however short the interval is.
        saves = saved(keeping)
        assert saves == 1
        assert server.memory.save(tmp_path / "kept").bytes_reused
        server.say("Which code?", memory="read")
        server.say("Which code?", None, memory="off")
        server.http.get("/v1/memory/sessions/anna/blocks")
        keeping._ends.wait(0.3)
        assert saved(keeping) == saves
        with pytest.MonkeyPatch.context() as patch:

            def full(*_: Any, **__: Any) -> Any:
                raise StoreError("no space left")

            patch.setattr(server.memory, "save", full)
            server.say("More.")
            until(lambda: keeping.failures > 0)
            assert server.http.get("/ready").status_code == 503
            assert "cmr_save_failing 1.0" in server.http.get("/metrics").text
        until(lambda: keeping.saves > saves)
        assert server.http.get("/ready").status_code == 200


def test_what_a_batch_stored_is_one_change(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer's end is one, and the end of its batch none besides: it would be saved twice."""
    with served(*tiny, folder=tmp_path / "kept") as server:
        told = list[str]()
        monkeypatch.setattr(server.service.engine, "_changed", lambda *names: told.extend(names))
        server.say(TEXT)
        server.idle()
        assert told == ["local/anna"]


def saved(keeping: Keeping) -> int:
    """How many saves were done when nothing is left to be saved."""
    until(lambda: keeping._due == math.inf)
    with keeping._saving:
        return keeping.saves


def test_a_memory_that_forgets_what_is_in_its_window_is_refused(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    with (
        cmr.attach(model, tokenizer=tokenizer, unnamed="refuse") as memory,
        pytest.raises(cmr.ConfigError, match="remember"),
    ):
        create_app(model, memory, Storing(), tokenizer, name="tiny")


def test_a_save_has_ended_an_interval_after_what_it_saves_at_the_latest(tmp_path: Path) -> None:
    """However long saves take, as long as that is less than the interval."""
    every, ended = 2.0, list[float]()

    class Slow:
        def save(self, *_: Any, **__: Any) -> Any:
            time.sleep(0.3)
            ended.append(time.monotonic())
            return SimpleNamespace(blocks=1, bytes_written=1)

    keeping = Keeping(cast(Memory, Slow()), tmp_path, None, every)
    keeping.start()
    told = [time.monotonic()]
    keeping.changed("a/anna")
    until(lambda: bool(ended))
    # What is stored while a save runs or behind it belongs to the next one.
    told.append(time.monotonic())
    keeping.changed("a/ben", "a/anna")
    until(lambda: len(ended) == 2)
    assert all(0.25 * every < end - at < every for at, end in zip(told, ended, strict=True))
    keeping.close()
    assert len(ended) == 2
