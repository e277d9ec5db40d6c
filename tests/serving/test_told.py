"""Who has the answer is remembered: at once, whatever becomes of the others in the batch."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

import cmr
from cmr.serving.engines import batch_engine
from tests.serving.served import Served, until

TOLD = "The gate code of {} is {}. "


@contextmanager
def slowed(model: Any, seconds: float) -> Iterator[None]:
    """Each forward takes so many seconds more."""
    handle = model.register_forward_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def asking(server: Served, *words: Any, **fields: Any) -> Iterator[list[Any]]:
    """A request by a thread of its own, whose reply is there at the end."""
    replies: list[Any] = []
    thread = threading.Thread(target=lambda: replies.append(server.say(*words, **fields)))
    thread.start()
    try:
        yield replies
    finally:
        thread.join()


@pytest.mark.parametrize("stream", [True, False])
def test_told_in_one_request_known_to_the_next(server: Served, stream: bool) -> None:
    for number in range(6):
        server.say(TOLD.format("anna", number) * 3, stream=stream)
        # At once: nobody waits for the batch to end.
        assert TOLD.format("anna", number) in server.stored()
        found = server.say(f"Which code is {number}?", memory="read", blocks=8).json()
        read = "".join(passage["text"] for passage in found["memory"]["recalled"])
        assert f"anna is {number}" in read


def test_an_answer_is_stored_before_it_is_told_though_others_go_on(
    tiny: tuple[Any, Any], server: Served
) -> None:
    with slowed(tiny[0], 0.05), asking(server, "Go on", "ben", max_tokens=50) as long:
        until(lambda: server.service.engine.load[1])
        # The other lane, or the same batch: as it comes.
        with asking(server, TOLD.format("carl", 7), "carl", max_tokens=50):
            assert server.say(TOLD.format("anna", 4712), max_tokens=2).status_code == 200
            assert not long and "4712" in server.stored()
            text = server.stored()
    # Neither the last token nor what the row was filled up with comes later.
    server.idle()
    assert server.stored() == text


def test_what_cannot_be_stored_is_not_said_to_be_remembered(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cmr.Session.finish

    def full(self: Any, rows: list[int]) -> int:
        if "local/ben" in [self.names[row] for row in rows]:
            raise cmr.ConfigError("no room for what local/ben said")
        return own(self, rows)

    monkeypatch.setattr(cmr.Session, "finish", full)
    with asking(server, "Hello", "anna", max_tokens=9) as hers:
        refused = server.say("Hello", "ben", max_tokens=2)
    assert refused.status_code == 507 and "ben" not in refused.text
    assert hers[0].status_code == 200 and "Hello" in server.stored()


@pytest.fixture
def gathered(server: Served, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Requests that come within 0.3 s are one batch; how many each batch has."""
    monkeypatch.setattr(batch_engine, "GATHER", 0.3)
    for _ in range(2):  # each lane still waits as long as it was told before
        server.say("Hello", None, memory="off", max_tokens=1)
    server.idle()
    sizes: list[int] = []
    own = batch_engine.BatchEngine._generate

    def noted(self: Any, batch: Any) -> None:
        sizes.append(len(batch))
        own(self, batch)

    monkeypatch.setattr(batch_engine.BatchEngine, "_generate", noted)
    return sizes


def test_the_next_request_waits_for_its_own_row_alone(
    tiny: tuple[Any, Any], server: Served, gathered: list[int]
) -> None:
    with slowed(tiny[0], 0.05), asking(server, "Go on", "ben", max_tokens=60) as long:
        assert server.say(TOLD.format("anna", 4712), max_tokens=2).status_code == 200
        assert gathered == [2] and not long
        found = server.say("Which code?", max_tokens=2).json()["memory"]["recalled"]
        assert "4712" in "".join(one["text"] for one in found) and not long
        # A session is not taken away from a batch that has it.
        assert server.http.delete("/v1/memory/sessions/anna").status_code == 200 and long
        assert long[0].status_code == 200 and long[0].json()["usage"]["completion_tokens"] == 60
    server.idle()
    assert "Go on" in server.stored("ben")


def test_what_is_stored_is_the_same_in_whichever_batches(server: Served) -> None:
    names, lengths = ("anna", "ben", "carl"), (1, 12, 3, 30, 2)

    def chat(name: str) -> None:
        said: list[dict[str, str]] = []
        for number in range(len(lengths)):
            length = lengths[(number + names.index(name)) % len(lengths)]
            said.append({"role": "user", "content": f"{name} says {number}. " * 2})
            reply = server.say("", name, messages=said, max_tokens=length, blocks=0,
                               temperature=1.0, seed=number)  # fmt: skip
            said.append(reply.json()["choices"][0]["message"])

    def stored() -> dict[str, str]:
        server.idle()
        # Where a block ends inside of a character, signs for broken ones stand there.
        return {name: re.sub("[^ -~]", "", server.stored(name)) for name in names}

    for name in names:
        chat(name)
    alone = stored()
    assert all(alone[name].count(f"{name} says 3. ") == 2 for name in names)
    for _ in range(2):
        server.memory.clear()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(chat, names))
        assert stored() == alone
