"""One client of a server under load: it asks, leaves early, sends nonsense, or reads slowly."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

CHAT = "/v1/chat/completions"
KINDS = {"ask": 6, "look": 1, "leave": 1, "nonsense": 1, "read slowly": 1}
"""Kinds of requests and how often each comes."""
DOCUMENTED = {429, 503, 504}
"""What a server may reply to a request that is right."""
NONSENSE: tuple[dict[str, Any] | bytes, ...] = (
    b'{"messages": [{"role": "user", "content": "\xff"}]}',
    b"[" * 5_000,
    {},
    {"messages": "hello"},
    {"messages": [{"role": "user", "content": "hello"}], "blocks": 10**9},
    {"messages": [{"role": "user", "content": "hello"}], "user": "../else"},
    {"messages": [{"role": "user", "content": "\ud800"}]},
)


@dataclass
class Seen:
    """What all clients have seen.

    Attributes:
        replies: replies by kind of request and status, 0 for a connection that broke.
        wrong: replies that no document tells of.
        foreign: passages with another session's secret.
        recalls: replies for which something was recalled.
        seconds: of whole replies; first: of first pieces of streams.
    """

    replies: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    foreign: int = 0
    recalls: int = 0
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


def secret(session: int) -> str:
    """A number that only this session is told."""
    return str(10_000_000 + session * 7_919_191 % 89_999_999)


async def ask(
    http: httpx2.AsyncClient,
    seen: Seen,
    rng: random.Random,
    sessions: Sequence[int],
    kinds: Sequence[str],
) -> None:
    """One request for one of some sessions, of one of some kinds."""
    session = rng.choice(sessions)
    (kind,) = rng.choices(kinds, [KINDS[kind] for kind in kinds])
    text = f"The code of my locker is {secret(session)}. Note {rng.randrange(8)}. Which is it?"
    body: Any = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": rng.randrange(1, 12),
        "temperature": 1.0,
    }
    headers = {"X-Session-Id": f"s{session}", "Content-Type": "application/json"}
    if kind == "look":
        body["memory"] = "read"
    streams = kind in ("leave", "read slowly")
    if streams:
        body["stream"] = True
    if kind == "nonsense":
        body = rng.choice(NONSENSE)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    began = time.perf_counter()
    try:
        if streams:
            status = await _stream(http, seen, kind, session, content, headers)
        else:
            reply = await http.post(CHAT, content=content, headers=headers)
            status = reply.status_code
            if status == 200:
                seen.seconds.append(time.perf_counter() - began)
                look(seen, session, reply.json().get("memory", {}))
    except httpx2.HTTPError as error:
        status = 0
        seen.wrong.append(f"{kind}: {type(error).__name__}")
    seen.replies[f"{kind} {status}"] += 1
    # Who looks at a session that nobody has told anything yet is told that there is none.
    right = {200, *DOCUMENTED, *({404} if kind == "look" else ())}
    if status and status not in ({400} if kind == "nonsense" else right):
        seen.wrong.append(f"{kind}: {status}")


async def _stream(
    http: httpx2.AsyncClient,
    seen: Seen,
    kind: str,
    session: int,
    content: bytes,
    headers: dict[str, str],
) -> int:
    began, first = time.perf_counter(), True
    async with http.stream("POST", CHAT, content=content, headers=headers) as reply:
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                code = event["error"]["code"]
                if code not in ("deadline", "closing"):
                    seen.wrong.append(f"{kind}: {code}")
                break
            piece = event["choices"][0].get("delta", {}).get("content")
            if piece and first:
                seen.first.append(time.perf_counter() - began)
                first = False
                if kind == "leave":
                    break
            look(seen, session, event.get("memory", {}))
            if kind == "read slowly":
                await asyncio.sleep(0.05)
        return reply.status_code


def look(seen: Seen, session: int, memory: dict[str, Any]) -> None:
    """Whose secrets stand in what was recalled."""
    recalled = memory.get("recalled", ())
    seen.recalls += bool(recalled)
    for passage in recalled:
        digits = "".join(c if c.isdigit() else " " for c in passage["text"])
        others = {number for number in digits.split() if len(number) == 8}
        seen.foreign += bool(others - {secret(session)})
