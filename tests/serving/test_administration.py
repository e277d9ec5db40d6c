"""The memory over HTTP: what a session holds, and what becomes of it."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import pytest

from tests.serving.served import Served, until

TEXT = "The gate code is 4712. The dog is called Bruno. The boat lies at pier nine. "


@pytest.fixture
def told(server: Served) -> Served:
    """The server, where anna's session has read something."""
    assert post(server, "anna/read", text=TEXT).status_code == 200
    return server


def post(server: Served, tail: str, **body: Any) -> Any:
    return server.http.post(f"/v1/memory/sessions/{tail}", json=body)


def listed(server: Served) -> list[str]:
    found = server.http.get("/v1/memory/sessions").json()
    assert found["total"] == len(found["data"])
    return [one["id"] for one in found["data"]]


def test_what_was_read_is_shown_found_and_exported(told: Served) -> None:
    (one,) = told.http.get("/v1/memory/sessions").json()["data"]
    for after, status in (("anna", 200), ("ben", 404)):
        page = told.http.get("/v1/memory/sessions", params={"after": after})
        assert page.status_code == status and not page.json().get("data")
    assert one["id"] == "anna" and 0 < one["tokens"] <= len(TEXT)
    shown = told.http.get("/v1/memory/sessions/anna/blocks", params={"limit": 2}).json()
    assert len(shown["data"]) == 2 < shown["total"]
    assert TEXT.startswith("".join(block["text"] for block in shown["data"]))
    lines = told.http.get("/v1/memory/sessions/anna/export").text.splitlines()
    assert "".join(json.loads(line)["text"] for line in lines) == told.stored() != ""
    found = post(told, "anna/search", query="Which gate code?", blocks=2).json()["data"]
    assert 1 <= len(found) <= 2 and all(one["text"] in TEXT for one in found)
    assert post(told, "ben/search", query="Which gate code?").status_code == 404


def test_a_conversation_is_read_once(server: Served) -> None:
    said = [{"role": "user", "content": TEXT}]
    first = post(server, "anna/read", messages=said).json()
    again = post(server, "anna/read", messages=said).json()
    assert first["tokens"] > 0 == again["tokens"] and again["known"] > 0


def test_sessions_are_copied_joined_named_and_ended(told: Served) -> None:
    assert post(told, "anna/fork", to="what-if").json()["blocks"] > 0
    assert post(told, "anna/fork", to="what-if").status_code == 409
    assert told.stored("what-if") == told.stored()
    assert post(told, "what-if/rename", to="anna2").status_code == 200
    assert post(told, "anna2/rename", to="anna").status_code == 409
    assert listed(told) == ["anna", "anna2"]
    post(told, "ben/read", text="Ben's own words are these.")
    assert post(told, "anna2/merge", into="ben").json()["blocks"] > 0
    assert "Bruno" in told.stored("ben") and listed(told) == ["anna", "ben"]
    gone = told.http.delete("/v1/memory/sessions/ben").json()
    assert gone["blocks"] > 0 == gone["outstanding"]
    assert listed(told) == ["anna"]
    assert told.http.delete("/v1/memory/sessions/ben").status_code == 404


def test_a_copy_that_does_not_fit_is_not_made(told: Served) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: Any) -> Any:
            raise ValueError("no room for local/anna")

        patch.setattr(told.memory, "fork", full)
        reply = post(told, "anna/fork", to="copy")
    assert reply.status_code == 507 and "local" not in reply.text and listed(told) == ["anna"]


def test_blocks_are_pinned_and_forgotten_by_their_own_session_alone(told: Served) -> None:
    post(told, "ben/read", text=TEXT)
    blocks = {
        name: told.http.get(f"/v1/memory/sessions/{name}/blocks").json()["data"]
        for name in ("anna", "ben")
    }
    mine, his = blocks["anna"][0]["id"], blocks["ben"][0]["id"]
    for tail in ("pin", "forget"):
        assert post(told, f"anna/{tail}", blocks=[mine, his]).status_code == 404
    assert not any(block.pinned for block in told.memory.inspect())
    assert post(told, "anna/pin", blocks=[mine]).json() == {"blocks": [mine], "pinned": True}
    assert [b.id for b in told.memory.inspect() if b.pinned] == [mine]
    assert post(told, "anna/forget", blocks=[mine]).json()["blocks"] == 1
    assert post(told, "anna/forget", text="Bruno").json()["blocks"] > 0
    assert "Bruno" not in told.stored() and "Bruno" in told.stored("ben")
    assert post(told, "anna/forget", older_than=0).json()["blocks"] > 0
    assert told.stored() == "" and listed(told) == ["anna", "ben"]


def test_who_looks_sees_what_was_asked_before(told: Served) -> None:
    """A session's memory waits for the requests before it, and is not ended under one."""
    engine: Any = told.service.engine
    own, held, begun = engine._generate, threading.Event(), threading.Event()

    def slow(batch: Any) -> None:
        begun.set()
        assert held.wait(20)
        own(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_generate", slow)
        asked = threading.Thread(target=told.say, args=("My boat is green.",))
        asked.start()
        assert begun.wait(20)
        replies: list[Any] = []
        ended = threading.Thread(
            target=lambda: replies.append(told.http.delete("/v1/memory/sessions/anna"))
        )
        ended.start()
        until(lambda: engine._turns._waiting)
        assert told.memory.sessions == ["local/anna"] and not replies
        held.set()
        asked.join()
        ended.join()
    assert replies[0].status_code == 200
    assert told.memory.sessions == [] and told.memory.tokens == 0


def test_what_is_done_is_noted_without_what_is_said(
    told: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cmr"):
        post(told, "anna/search", query="Bruno")
        post(told, "anna/forget", text="Bruno")
        told.http.get("/v1/memory/sessions/anna/export")
        post(told, "ben/rename", to="carl")
    lines = [r.getMessage() for r in caplog.records if r.name == "cmr.audit"]
    assert lines == [
        "tenant=local action=forget sessions=anna done",
        "tenant=local action=export sessions=anna done",
        "tenant=local action=rename sessions=ben,carl failed",
    ]
    assert "Bruno" not in caplog.text


def test_figures_say_what_happened_and_name_nobody(told: Served) -> None:
    told.say("Which gate code?")
    told.say("Hello", None)
    told.idle()
    page = told.http.get("/metrics").text
    for line in (
        'cmr_requests_total{endpoint="/v1/chat/completions",status="200"}',
        'cmr_requests_total{endpoint="/v1/chat/completions",status="400"}',
        'cmr_answer_seconds_count{stage="first_token"}',
        'cmr_tokens_total{kind="recalled"}',
        "cmr_waiting_requests 0.0",
        "cmr_sessions 1.0",
        'cmr_tier_bytes{tier="recent"}',
        "cmr_evicted_blocks_total",
    ):
        assert line in page, page
    assert "anna" not in page and "Bruno" not in page and "local" not in page
    assert told.http.get("/health").json() == {"status": "ok"}
    assert told.http.get("/ready").json() == {"engine": True, "saving": True}
