"""`cmr top`: what it shows of a running server, and what it makes of others."""

from __future__ import annotations

import copy
import http.server
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cmr.cli.app import app
from cmr.cli.errors import UsageError
from cmr.cli.watch import top
from cmr.cli.watch.figures import Figures, fetch
from cmr.retrieval import Retriever
from cmr.serving.keys import make_key
from tests.serving.served import Served, served


def shown(*words: str, **environment: str) -> Any:
    return CliRunner().invoke(app, ["top", *words], env={"COLUMNS": "120", **environment})


def url_of(server: Served) -> str:
    return str(server.http.base_url)


def test_once_shows_what_a_server_did(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    server.say("My gate code is 7315." * 4)
    with monkeypatch.context() as broken:
        broken.setattr(Retriever, "search", lambda *_: 1 / 0)
        assert server.say("Which gate code?").status_code == 200
    server.idle()
    result = shown(url_of(server), "--once")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "since the server began" in said and "0 running, 0 waiting" in said
    stored = int(server.memory.tokens)
    assert stored and f"stored {stored:,} of 4,096 tokens, 1 sessions" in said
    assert "search: ZeroDivisionError 1 times" in said
    figures = fetch(url_of(server))
    calls = figures.get("cmr_stage_seconds_count", stage="call")
    assert calls >= 2 and f"call {calls:.0f} " in said
    assert "anna" not in said and "7315" not in said


def test_it_goes_on_with_what_happened_since(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.say("Hello")
    looks = []

    def wait(_: float) -> None:
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        server.say("Hello")
        server.idle()

    monkeypatch.setattr(top, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
    views: list[Any] = []
    view = top.view

    def note(now: Figures, since: Figures, seconds: float | None) -> Any:
        views.append((since, seconds))
        return view(now, since, seconds)

    monkeypatch.setattr(top, "view", note)
    result = shown(url_of(server))
    assert result.exit_code == 130
    answers = [since.sum("cmr_answers_total") for since, _ in views]
    assert answers[1:] == [1, 1] and answers[0] >= 1
    assert views[0][1] is None and all(seconds > 0 for _, seconds in views[1:])


def test_a_key_is_needed_where_one_is(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    use, metrics = (make_key(keys, "acme", [scope]) for scope in ("use", "metrics"))
    model = copy.deepcopy(tiny[0])  # the shared one is served already
    with served(model, tiny[1], keys=keys) as server:
        url = url_of(server)
        assert shown(url, "--once", CMR_SERVER_KEY=metrics).exit_code == 0
        for key in ("", use):
            result = shown(url, "--once", CMR_SERVER_KEY=key)
            assert result.exit_code == 2 and "CMR_SERVER_KEY" in result.output


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[Any]]]:
    """A server of somebody's that answers everything so; and the headers that it was sent."""
    sent: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as there:
        thread = threading.Thread(target=there.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{there.server_port}", sent
        finally:
            there.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [b"", b"<html>", b"up 1\n", b"\xff\xfe", b"x" * (5 << 20)])
def test_what_is_no_page_of_ours_is_one_line(body: bytes) -> None:
    with answering(200, body) as (url, _):
        result = shown(url, "--once")
    assert result.exit_code == 2 and result.output.startswith("error: ")


def test_a_key_goes_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMR_SERVER_KEY", "secret")
    with answering(200, b"") as (other, seen), answering(302, b"", Location=other) as (url, sent):
        with pytest.raises(UsageError, match="302"):
            fetch(url)
        assert sent == [("/metrics", "Bearer secret")] and not seen


@pytest.mark.parametrize("url", ["file:///etc/hosts", "127.0.0.1:1", "http://127.0.0.1:1"])
def test_where_no_server_is_one_line(url: str) -> None:
    result = shown(url, "--once")
    assert result.exit_code == 2 and result.output.startswith("error: ")


PAGE = """# TYPE cmr_stored_tokens gauge
cmr_stored_tokens 5
# TYPE cmr_stage_seconds histogram
cmr_stage_seconds_bucket{le="0.1",stage="call"} 1
cmr_stage_seconds_bucket{le="1.0",stage="call"} 3
cmr_stage_seconds_bucket{le="+Inf",stage="call"} 4
cmr_stage_seconds_count{stage="call"} 4
cmr_stage_seconds_sum{stage="call"} 9
"""


def test_percentiles_are_bounds_of_buckets() -> None:
    figures = Figures.parse(PAGE)
    shares = (0.25, 0.5, 0.75, 0.95)
    found = [figures.percentile("cmr_stage_seconds", share, stage="call") for share in shares]
    assert found == [0.1, 1.0, 1.0, math.inf]
    assert figures.percentile("cmr_stage_seconds", 0.5, stage="store") is None
    later = Figures.parse(PAGE.replace('"+Inf",stage="call"} 4', '"+Inf",stage="call"} 6'))
    assert (later - figures).percentile("cmr_stage_seconds", 0.5, stage="call") == math.inf
    assert (figures - later).get("cmr_stage_seconds_bucket", le="+Inf", stage="call") == 4
