"""A server on a port of this machine, with a tiny random model unless another one is given."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import uvicorn

import cmr
from cmr.serving.app import create_app
from cmr.serving.engines.storing import Storing
from cmr.serving.engines.upstream.client import Upstream
from cmr.serving.service import Service
from cmr.serving.settings import ServerSettings

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ATTACHED: dict[str, Any] = {"remember": "all", "unnamed": "refuse"}
READS: dict[str, Any] = {"window": 64, "budget": 4096, "threshold": 0.0, "block_size": 16}
"""Settings under which a memory of random weights recalls whatever there is."""


@dataclass
class Served:
    """A server that runs: `http` and `client` speak to it, `client` for nobody's session."""

    service: Service
    http: httpx2.Client
    client: openai.OpenAI

    @property
    def memory(self) -> cmr.Memory:
        return self.service.memory

    def say(self, text: str, session: str | None = "anna", **fields: Any) -> httpx2.Response:
        """One chat message."""
        headers = {} if session is None else {"x-session-id": session}
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def stored(self, session: str = "anna", tenant: str = "local") -> str:
        """All text of a session."""
        blocks = self.memory.inspect(f"{tenant}/{session}")
        return "".join(block.text or "" for block in blocks)

    def idle(self) -> None:
        """Wait until nothing is under way: rows are stored when their batch has ended."""
        until(lambda: self.service.engine.load == (0, 0))


def until(true: Any, seconds: float = 20.0) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come to be"
        time.sleep(0.01)


def broken_off(server: Served) -> float:
    """Answers that were counted as broken off."""
    page = server.http.get("/metrics").text
    return sum(float(n) for n in re.findall(r'cmr_answers_total{reason="cancelled"} (\S+)', page))


@contextmanager
def served(
    model: Any,
    tokenizer: Any,
    *,
    settings: ServerSettings | None = None,
    keys: Path | None = None,
    folder: Path | None = None,
    attached: dict[str, Any] | None = None,
    name: str = "tiny",
    upstream: Upstream | None = None,
    shared: bool = False,
) -> Iterator[Served]:
    """A server that runs inside; a folder with a memory is loaded."""
    storing = Storing()
    more: dict[str, Any] = {"tokenizer": tokenizer, "keep": storing, **ATTACHED}
    more |= READS if attached is None else attached
    begun = folder is not None and folder.exists() and not shared
    memory = cmr.load(folder, model, **more) if begun else cmr.attach(model, **more)
    with memory:
        app = create_app(
            model,
            memory,
            storing,
            tokenizer,
            name=name,
            settings=settings or ServerSettings(max_tokens=64, drain=5.0),
            keys=keys,
            folder=folder,
            upstream=upstream,
            shared=shared,
        )
        config = uvicorn.Config(app, port=0, access_log=False, log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            port = server.servers[0].sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            with httpx2.Client(base_url=url, timeout=60) as http:
                client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
                yield Served(app.state.service, http, client)
        finally:
            server.should_exit = True
            thread.join()
