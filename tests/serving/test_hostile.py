"""What no client should send: a clear 4xx, nothing stored changed, and nothing of it in the log."""

from __future__ import annotations

import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving.served import Served

CHAT = "/v1/chat/completions"
SECRET = "The gate code is 4712. "
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def told(server: Served) -> Served:
    """The server, where anna has told something."""
    server.say(SECRET * 3)
    server.idle()
    return server


def snapshot(server: Served) -> Any:
    server.idle()
    blocks = [(b.id, b.session, b.text, b.pinned) for b in server.memory.inspect()]
    return server.memory.sessions, blocks


BODIES: dict[str, dict[str, Any]] = {
    "no messages": {},
    "empty messages": {"messages": []},
    "a text for messages": {"messages": "Hello"},
    "an unknown role": {"messages": [{"role": "root", "content": "x"}]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    "an unknown field": {"messages": HELLO, "functions": []},
    "two answers": {"messages": HELLO, "n": 2},
    "a penalty": {"messages": HELLO, "presence_penalty": 0.5},
    "huge blocks": {"messages": HELLO, "blocks": 10**12},
    "a number that json cannot hold": {"messages": HELLO, "seed": 10**400},
    "negative blocks": {"messages": HELLO, "blocks": -1},
    "a boiling temperature": {"messages": HELLO, "temperature": 2.5},
    "no tokens": {"messages": HELLO, "max_tokens": 0},
    "too many tokens": {"messages": HELLO, "max_tokens": 65},
    "two lengths": {"messages": HELLO, "max_tokens": 4, "max_completion_tokens": 4},
    "an empty stop": {"messages": HELLO, "stop": ""},
    "many stops": {"messages": HELLO, "stop": ["a", "b", "c", "d", "e"]},
    "another mode": {"messages": HELLO, "memory": "write"},
    "a mode and blocks": {"messages": HELLO, "memory": "off", "blocks": 1},
    "two sessions": {"messages": HELLO, "user": "ben"},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "a path for a session": {"messages": HELLO, "user": "../ben"},
    "another tenant's name": {"messages": HELLO, "user": "local/ben"},
    "options of no stream": {"messages": HELLO, "stream_options": {"include_usage": True}},
    "a text for a number": {"messages": HELLO, "max_tokens": "4"},
    "true for a number": {"messages": HELLO, "blocks": True},
    "half a block": {"messages": HELLO, "blocks": 1.5},
    "a number for a text": {"messages": [{"role": "user", "content": 4712}]},
    "a list for a session": {"messages": HELLO, "user": ["anna"]},
    "too long": {"messages": [{"role": "user", "content": "x" * 20_000}]},
    "too long without memory": {
        "messages": [{"role": "user", "content": "x" * 2_048}],
        "memory": "off",
    },
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_wrong(told: Served, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    before = snapshot(told)
    with caplog.at_level(logging.DEBUG, "cmr"):
        body = json.dumps({"user": "anna", **BODIES[kind]}).encode()
        headers = {"content-type": "application/json"}
        if kind == "two sessions":
            headers["x-session-id"] = "anna"
        reply = told.http.post(CHAT, content=body, headers=headers)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"] and "Hello" not in reply.text
    assert snapshot(told) == before
    assert "Hello" not in caplog.text


def deep(times: int) -> bytes:
    """A message whose content is in so many lists."""
    content = b'[{"type": ' * times + b'"Hello"' + b"}]" * times
    return b'{"user": "anna", "messages": [{"role": "user", "content": ' + content + b"}]}"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "application/json", 400),
        (b'{"messages": ', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (deep(50_000), "application/json", 400),
        (deep(200), "application/json", 400),
        (b'{"user": NaN}', "application/json", 400),
        (b'{"messages": [], "temperature": NaN}', "application/json", 400),
        (b"null", "application/json", 400),
        (json.dumps({"messages": HELLO, "user": "anna"}).encode(), "text/plain", 415),
        (b"x" * (1 << 20) + b"x", "application/json", 413),
    ],
    ids=[
        "no utf-8",
        "half",
        "deep",
        "deep and whole",
        "deep and read",
        "nan",
        "nan number",
        "null",
        "a form's type",
        "too large",
    ],
)
def test_a_body_that_is_none(told: Served, content: bytes, kind: str, status: int) -> None:
    before = snapshot(told)
    reply = told.http.post(CHAT, content=content, headers={"content-type": kind})
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]
    assert snapshot(told) == before


def raw(server: Served, head: str, body: bytes = b"") -> bytes:
    """The reply to what is sent as it stands."""
    port = urlsplit(str(server.http.base_url)).port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return connection.recv(65_536)


def test_a_hundred_megabytes_are_refused_before_they_are_sent(told: Served) -> None:
    head = f"POST {CHAT} HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
    assert b" 413 " in raw(told, head + f"Content-Length: {100 << 20}")
    # In pieces, whose number nobody says.
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    assert b" 413 " in raw(told, head + "Transfer-Encoding: chunked", piece * 17)


def test_a_page_of_elsewhere_is_not_served(told: Served) -> None:
    assert b" 403 " in raw(told, "GET /v1/models HTTP/1.1\nHost: evil.example")
    assert b" 200 " in raw(told, "GET /v1/models HTTP/1.1\nHost: [::1]:8000")


PATHS = [
    "..%2Fanna", "%2e%2e", "..", ".anna", "anna%00", "anna%0a", "anna/../ben", "local%2Fanna",
    "%2Fanna", "a" * 129, "%ff", "anna%20", "%E2%80%AE",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_names_no_session(told: Served, path: str) -> None:
    before = snapshot(told)
    for method, tail in (("GET", "/blocks"), ("DELETE", ""), ("GET", "/export")):
        head = f"{method} /v1/memory/sessions/{path}{tail} HTTP/1.1\nHost: localhost"
        reply = raw(told, head)
        assert reply.split()[1][:1] == b"4", reply
        assert b"4712" not in reply
    assert snapshot(told) == before


@pytest.mark.parametrize(
    "session",
    ["../anna", "local/anna", "other/anna", "/", ".", "anna\x00", "anna anna", "a" * 129, "\xe4"],
)
def test_a_header_that_names_no_session(told: Served, session: str) -> None:
    before = snapshot(told)
    body = json.dumps({"messages": HELLO}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
        f"X-Session-Id: {session}\nContent-Length: {len(body)}"
    )
    assert raw(told, head, body).split()[1] == b"400"
    assert snapshot(told) == before


@pytest.mark.parametrize("tail", ["fork", "merge", "rename", "search", "read", "pin", "forget"])
@pytest.mark.parametrize(
    "content",
    [b'{"text": "\xff"}', b'{"text": NaN}', b'{"older_than": 1e999}', b'{"blocks": [NaN]}',
     b'{"blocks": [0.5]}', b'{"blocks": ["0"]}', b'{"blocks": [-1]}', b'{"to": "other/anna"}',
     b'{"into": "../anna"}', b'{"to": null}', b'{"query": 4712}', b'{"blocks": {}}', b"[]", b'""'],
)  # fmt: skip
def test_administration_of_what_is_none(told: Served, tail: str, content: bytes) -> None:
    before = snapshot(told)
    headers = {"content-type": "application/json"}
    url = f"/v1/memory/sessions/anna/{tail}"
    reply = told.http.post(url, content=content, headers=headers)
    assert reply.status_code == 400, reply.text
    assert snapshot(told) == before


@pytest.mark.parametrize(
    ("tail", "body"),
    [
        ("fork", {"to": "a/b"}),
        ("fork", {"to": "anna"}),
        ("rename", {"to": "anna"}),
        ("merge", {"into": "anna"}),
        ("merge", {"into": "nobody"}),
        ("pin", {"blocks": []}),
        ("pin", {"blocks": [10**9]}),
        ("pin", {"blocks": [-1]}),
        ("forget", {}),
        ("forget", {"blocks": [10**9]}),
        ("forget", {"blocks": [10**30]}),
        ("forget", {"older_than": -1}),
        ("search", {"query": " "}),
        ("search", {"query": "x", "blocks": 10**6}),
        ("read", {}),
        ("read", {"text": ""}),
        ("read", {"text": "x", "messages": HELLO}),
    ],
)
def test_what_cannot_be_done_to_a_session(told: Served, tail: str, body: dict[str, Any]) -> None:
    before = snapshot(told)
    reply = told.http.post(f"/v1/memory/sessions/anna/{tail}", json=body)
    assert reply.status_code in (400, 404, 409), reply.text
    assert snapshot(told) == before


def test_what_breaks_inside_is_told_without_its_text(
    told: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"while looking at {SECRET}")

    engine: Any = told.service.engine
    monkeypatch.setattr(told.memory, "inspect", broken)
    monkeypatch.setattr(engine, "_generate", broken)
    with caplog.at_level(logging.DEBUG):
        replies = [
            told.say("Hello"),
            told.say("Hello", stream=True),
            told.http.get("/v1/memory/sessions/anna/blocks"),
        ]
    assert [reply.status_code for reply in replies] == [500, 200, 500]
    assert all("internal_error" in reply.text for reply in replies)
    assert "RuntimeError at test_hostile.py" in caplog.text
    assert "4712" not in caplog.text + "".join(reply.text for reply in replies)
    monkeypatch.undo()
    assert told.say("Hello").status_code == 200


def test_one_rows_failure_is_its_own(told: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = told.service.engine
    own = engine._generate

    def broken(batch: Any) -> None:
        if any(ticket.job.session == "local/ben" for ticket in batch):
            raise RuntimeError("ben's")
        own(batch)

    monkeypatch.setattr(engine, "_generate", broken)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda name: told.say("Hi", name), ("anna", "ben", "carl", "dora")))
    assert [reply.status_code for reply in replies] == [200, 500, 200, 200]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"usr": "anna"}, "body.usr: there is no such field here"),
        ({"user": "anna and ben"}, "body.user: 1 to 128 letters, digits and ._@+:- expected"),
        ({"user": "anna", "model": "tyni"}, "model: 'tiny' expected, as this server has no other"),
    ],
)
def test_a_mistake_is_told_in_words_of_ours(told: Served, more: dict[str, Any], said: str) -> None:
    reply = told.http.post(CHAT, json={"messages": HELLO, **more})
    assert reply.json()["error"]["message"].startswith(said)
    headers = {"content-type": "application/json"}
    reply = told.http.post(CHAT, content=b"{", headers=headers)
    assert reply.json()["error"]["message"] == "body: JSON expected"
