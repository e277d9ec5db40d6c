"""Two servers on one folder: a session is at home in one, and comes when it is asked for."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cmr
from cmr.errors import StoreError
from cmr.serving.homes import claims, homes
from cmr.serving.homes.claims import OWNED, WANTED, Claims
from cmr.serving.settings import ServerSettings
from tests.serving.served import READS, Served, served, until
from tests.serving.test_told import asking, slowed

TOLD = "The gate code of {} is {}. "
RARELY = ServerSettings(max_tokens=64, drain=5.0, save_every=3600.0)


@pytest.fixture(scope="module")
def models(tiny: tuple[Any, Any]) -> tuple[Any, Any]:
    """Two of the same, as two processes have it."""
    return copy.deepcopy(tiny[0]), copy.deepcopy(tiny[0])


@contextmanager
def two(
    models: tuple[Any, Any], tokenizer: Any, folder: Path, **options: Any
) -> Iterator[tuple[Served, Served]]:
    options = {"settings": RARELY, **options}
    with (
        served(models[0], tokenizer, folder=folder, shared=True, **options) as first,
        served(models[1], tokenizer, folder=folder, shared=True, **options) as second,
    ):
        yield first, second


@pytest.fixture
def both(
    models: tuple[Any, Any], tiny: tuple[Any, Any], tmp_path: Path
) -> Iterator[tuple[Served, Served]]:
    with two(models, tiny[1], tmp_path / "kept") as found:
        yield found


def owned(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "kept" / OWNED))


def test_a_session_goes_where_it_is_asked_for(both: tuple[Served, Served], tmp_path: Path) -> None:
    first, second = both
    first.say(TOLD.format("anna", 4712))
    first.say(TOLD.format("ben", 1234), "ben")
    assert first.memory.sessions == ["local/anna", "local/ben"]
    reply = second.say("Which code?").json()
    assert "4712" in "".join(one["text"] for one in reply["memory"]["recalled"])
    # Nobody else's, and nowhere twice.
    assert first.memory.sessions == ["local/ben"] and second.memory.sessions == ["local/anna"]
    second.say(TOLD.format("anna", 9999))
    first.say("Hello again.")
    stored = first.stored()
    places = [stored.index(text) for text in ("4712", "Which code?", "9999", "Hello again.")]
    assert places == sorted(places) and stored.count("4712") == 1
    assert second.memory.sessions == [] and owned(tmp_path) == ["local@anna", "local@ben"]
    assert os.listdir(tmp_path / "kept" / WANTED) == []


def test_whoever_is_asked_answers_whatever_comes_at_once(both: tuple[Served, Served]) -> None:
    def tell(number: int) -> int:
        server, name = both[number % 2], f"user{number % 3}"
        return server.say(f"<{number}> is told.", name, max_tokens=2).status_code

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(tell, range(24))) == {200}
    for name in ("user0", "user1", "user2"):
        texts = {n: f"<{n}> is told." for n in range(24) if f"user{n % 3}" == name}
        both[0].say("All?", name, max_tokens=1)
        stored = both[0].stored(name)
        assert {n: stored.count(text) for n, text in texts.items()} == dict.fromkeys(texts, 1)
        assert stored.count("is told.") == len(texts)
    assert both[1].memory.sessions == []


def test_administration_reaches_what_is_elsewhere(
    both: tuple[Served, Served], tmp_path: Path
) -> None:
    first, second = both
    path = "/v1/memory/sessions"
    first.say(TOLD.format("anna", 4712))
    first.say(TOLD.format("ben", 1234), "ben")
    first.service.keeping._save()
    listed = second.http.get(path).json()
    assert [one["id"] for one in listed["data"]] == ["anna", "ben"] and listed["total"] == 2
    assert {one["tokens"] for one in listed["data"]} == {None}
    for missing in (second.http.get(f"{path}/carl/blocks"),
                    second.say("Hi", "carl", memory="read")):  # fmt: skip
        assert missing.status_code == 404
    assert "local@carl" not in owned(tmp_path)
    assert "4712" in second.http.get(f"{path}/anna/export").text
    assert second.http.post(f"{path}/anna/fork", json={"to": "ben"}).status_code == 409
    assert second.http.post(f"{path}/anna/fork", json={"to": "carl"}).status_code == 200
    assert first.http.post(f"{path}/anna/rename", json={"to": "dora"}).status_code == 200
    # On the disk at once: the old name is no longer there to be taken up.
    assert sorted(os.listdir(tmp_path / "kept")) == [OWNED, WANTED, "local@ben", "local@dora"]
    assert second.http.post(f"{path}/dora/merge", json={"into": "ben"}).status_code == 200
    stored = first.http.get(f"{path}/ben/export").text
    assert "4712" in stored and "1234" in stored
    assert second.http.delete(f"{path}/ben").json()["blocks"] > 0
    assert first.http.get(f"{path}/ben/blocks").status_code == 404
    assert "4712" in first.http.get(f"{path}/carl/export").text
    assert [one["id"] for one in second.http.get(path).json()["data"]] == ["carl"]
    assert owned(tmp_path) == ["local@carl"]


def test_what_was_kept_is_taken_up_by_who_comes_next(
    models: tuple[Any, Any], tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    with two(models, tiny[1], tmp_path / "kept") as (first, second):
        first.say(TOLD.format("anna", 4712))
        second.say(TOLD.format("ben", 1234), "ben")
        first.say("Only for now.", "guest", ephemeral=True)
        stored = first.stored(), second.stored("ben")
    assert owned(tmp_path) == []
    with two(models, tiny[1], tmp_path / "kept") as (first, second):
        second.say("Go on", memory="read")
        first.say("Go on", "ben", memory="read")
        assert (second.stored(), first.stored("ben")) == stored
        assert first.http.get("/v1/memory/sessions").json()["total"] == 2


def test_one_that_is_busy_or_cannot_save_keeps_it(
    models: tuple[Any, Any], tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    soon = ServerSettings(max_tokens=64, drain=5.0, save_every=3600.0, deadline=8.0)
    with two(models, tiny[1], tmp_path / "kept", settings=soon) as (first, second):
        first.say(TOLD.format("anna", 4712))
        with slowed(models[0], 0.05), asking(first, "Go on", max_tokens=32) as long:
            until(lambda: first.service.engine.load == (0, 1))
            # It comes when it is answered there, and others are not held up by that.
            with asking(second, "Which code?") as waited:
                assert second.say("Hello", "ben").status_code == 200 and not long and not waited
        assert long[0].status_code == waited[0].status_code == 200
        stored = second.stored()
        assert 0 < stored.index("Go on") < stored.index("Which code?")
        with pytest.MonkeyPatch.context() as patch:

            def full(*_: Any, **__: Any) -> Any:
                raise StoreError("no space left")

            patch.setattr(second.memory, "save", full)
            assert first.say("Which code?").status_code == 504
            assert second.stored() == stored
        assert first.say("And now?").status_code == 200 and "4712" in first.stored()
        second.say("For now.", "guest", ephemeral=True)
        assert first.say("Who?", "guest").status_code == 504
        assert "For now." in second.stored("guest")


def test_what_cannot_be_read_is_told_and_stays(
    models: tuple[Any, Any], tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    with served(models[0], tiny[1], folder=tmp_path / "kept", shared=True) as server:
        server.say("Hello")
    manifest = tmp_path / "kept" / "local@anna" / "manifest.json"
    broken = manifest.read_bytes()[:-9]
    manifest.write_bytes(broken)
    with served(models[0], tiny[1], folder=tmp_path / "kept", shared=True) as server:
        assert server.say("Hello").status_code == 503 and server.memory.sessions == []
        assert server.http.delete("/v1/memory/sessions/anna").status_code == 503
        assert server.say("Hello", "ben").status_code == 200
    assert manifest.read_bytes() == broken
    assert owned(tmp_path) == []


def test_where_there_is_no_room_those_longest_not_asked_for_leave(
    models: tuple[Any, Any], tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    names = [f"user{number}" for number in range(6)]
    small = {**READS, "budget": 256}
    with served(models[0], tiny[1], folder=tmp_path / "kept", settings=RARELY, shared=True,
                attached=small) as server:  # fmt: skip
        keeping: Any = server.service.keeping
        for name in names:
            server.say(TOLD.format(name, name[::-1]) * 2, name, max_tokens=1)
            # One after the other, so that nothing has to be evicted.
            assert keeping._release(f"local/{name}", 1.0)
        for name in (*names, *names):
            reply = server.say("Which code?", name, memory="read", max_tokens=1)
            assert name[::-1] in str(reply.json()["memory"]["recalled"]), name
        there = server.memory.sessions
        assert "local/user5" in there and "local/user0" not in there


def test_so_many_files_are_open_and_no_more(
    both: tuple[Served, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = both
    monkeypatch.setattr(first.service.keeping, "_most", 2)
    names = [f"user{number}" for number in range(5)]
    for text in ("Hello.", "Hello again."):
        for name in names:
            assert first.say(f"{text} {name}", name, max_tokens=1).status_code == 200
            assert len(owned(tmp_path)) <= 2
    assert first.memory.sessions == ["local/user3", "local/user4"]
    for name in names:
        first.say("Who?", name, memory="read")
        assert first.stored(name) == f"Hello. {name}Hello again. {name}"


def test_a_claim_ends_with_its_process_and_not_before(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cmr.serving.homes.claims import Claims\n"
        f"claims = Claims(Path({str(tmp_path)!r}))\n"
        "assert claims.take('t/anna'); print('has', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "has\n"
        ours = Claims(tmp_path)
        process.send_signal(signal.SIGSTOP)
        assert not ours.take("t/anna") and ours.held == []
        assert os.listdir(tmp_path / WANTED) == ["t@anna"]
        process.kill()
        process.wait()
        assert ours.take("t/anna") and ours.held == ["t/anna"]
        assert os.listdir(tmp_path / WANTED) == []
    finally:
        process.kill()
        process.wait()


def test_a_file_that_was_let_go_of_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("t/anna")
    own, calls = claims.flock, 0

    def late(descriptor: int, exclusive: bool) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:  # its owner lets go between the opening and the lock
            first.free("t/anna")
        return own(descriptor, exclusive)

    monkeypatch.setattr(claims, "flock", late)
    assert second.take("t/anna") and calls == 2
    assert not first.take("t/anna") and os.listdir(tmp_path / OWNED) == ["t@anna"]
    second.free("t/anna")
    assert first.take("t/anna")


def test_a_folder_of_something_else_is_refused(
    tiny: tuple[Any, Any], models: tuple[Any, Any], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    with served(models[0], tiny[1], folder=kept) as server:
        server.say("Hello")
    with pytest.raises(cmr.ConfigError, match="shared sessions expected"):
        homes.require_shared(kept)
    with pytest.raises(cmr.ConfigError), served(models[0], tiny[1], shared=True):
        pytest.fail("shared with nobody knows whom")
