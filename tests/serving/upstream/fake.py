"""A server that answers as it is told to, rightly or not, and notes what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Plan = Callable[["Handler"], None]


@dataclass
class Fake:
    """A server: `plan` answers the next requests; `bodies` and `headers` are what came.

    `left`: set when a client went before its answer was complete.
    """

    url: str
    plan: Plan
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    fake: Fake

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.fake.bodies.append(body)
        self.fake.headers.append({k.lower(): v for k, v in self.headers.items()})
        self.fake.paths.append(self.path)
        try:
            self.fake.plan(self)
        except (BrokenPipeError, ConnectionResetError):
            self.fake.left.set()
        self.close_connection = True

    def begin(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def data(self, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def delta(reason: str | None = None, **said: Any) -> dict[str, Any]:
    """A piece of a chat's answer."""
    return {"choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


def says(*pieces: str, reason: str = "stop", usage: tuple[int, int] | None = (11, 3)) -> Plan:
    """Answers with these pieces."""

    def plan(handler: Handler) -> None:
        handler.begin()
        for piece in pieces:
            handler.data(delta(content=piece))
        handler.data(delta(reason))
        if usage is not None:
            counts = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
            handler.data({"choices": [], "usage": {**counts, "total_tokens": sum(usage)}})
        handler.data("[DONE]")

    return plan


def sends(*values: Any) -> Plan:
    """Sends these events and ends."""

    def plan(handler: Handler) -> None:
        handler.begin()
        for value in values:
            handler.data(value)

    return plan


def goes_on(handler: Handler) -> None:
    """Answers for as long as somebody listens, 20 s at most."""
    handler.begin()
    for number in range(400):
        handler.data(delta(content=f" {number}"))
        time.sleep(0.05)


@contextmanager
def faking() -> Iterator[Fake]:
    """A server that runs inside."""
    handler = type("Own", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    found = handler.fake = Fake(f"http://127.0.0.1:{server.server_port}/v1", says("Fine."))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
