"""Who has the answer is remembered: at once, whatever becomes of the others in the batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import cmr
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
