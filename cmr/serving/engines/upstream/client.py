"""Asks a server with OpenAI's endpoints, and reads the answer as it comes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from cmr.errors import ConfigError
from cmr.serving.refusals import Refusal

log = logging.getLogger(__name__)
CONNECT = 10.0
"""Seconds in which a connection must be there."""
LINE, WHOLE = 1 << 20, 1 << 24
"""Bytes of one event and of an answer, at most: nobody else's server fills this one's memory."""
REASONS = ("stop", "length", "content_filter")
"""Why answers end; calls of tools are told apart."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Upstream:
    """Another server, as it is asked.

    Attributes:
        url: its address, as OpenAI's clients take it; without a path, `/v1` is meant.
        model: what it calls the model.
        key: that it is asked with; None: none. It is never logged or shown.
        silence: seconds without a byte after which it is given up.
        extra: fields that each request has beside those that are asked for.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    silence: float = 60.0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            right = False
        if not right or parts.username or parts.password or parts.query or parts.fragment:
            # What stands in it may be a key: only what is sure to be none is repeated.
            raise ConfigError("upstream: an address such as http://127.0.0.1:8001/v1 expected, "
                              "without a name, a key or a query in it")  # fmt: skip
        object.__setattr__(self, "url", self.url.rstrip("/") + ("" if parts.path.strip("/")
                                                                else "/v1"))  # fmt: skip
        if not self.model:
            raise ConfigError("upstream model: the name of a model expected, got ''")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError("upstream key: printable ASCII characters expected")
        if not self.silence > 0:
            raise ConfigError(f"upstream silence: more than 0 seconds expected, got {self.silence}")
        ours = sorted({"messages", "prompt", "model", "stream", "stream_options"} & set(self.extra))
        if ours:
            raise ConfigError(f"upstream extra fields: {', '.join(ours)} is what the server sets")


@dataclass
class Heard:
    """What has come of an answer.

    Attributes:
        text: of it so far.
        reason: why it ended; '' while it has not.
        prompt, tokens: as the other server counts them; None where it does not say.
    """

    text: str = ""
    reason: str = ""
    prompt: int | None = None
    tokens: int | None = None
    _calls: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def calls(self) -> tuple[dict[str, Any], ...]:
        """Calls of tools, as OpenAI's endpoints write them."""
        return tuple(
            {"id": one["id"], "type": "function",
             "function": {"name": one["name"], "arguments": one["arguments"]}}
            for _, one in sorted(self._calls.items())
        )  # fmt: skip

    def take(self, chunk: Any) -> str:
        """The next event; gives the text in it. Raises `Refusal` for what is none."""
        try:
            if chunk.get("error"):
                raise Refusal(502, "upstream", "the model's server failed while it answered")
            if usage := chunk.get("usage"):
                self.prompt, self.tokens = (
                    _count(usage[name]) for name in ("prompt_tokens", "completion_tokens")
                )
            new = ""
            for choice in chunk["choices"][:1]:
                said = choice["delta"] if "delta" in choice else {"content": choice["text"]}
                new = _text(said.get("content"))
                for call in said.get("tool_calls") or ():
                    self._call(call)
                if reason := _text(choice.get("finish_reason")):
                    self.reason = reason if reason in REASONS else "stop"
        except (AttributeError, KeyError, TypeError, ValueError):
            raise malformed() from None
        self.text += new
        return new

    def _call(self, call: Any) -> None:
        # Whose calls come whole may give them no number.
        at = call.get("index")
        at = len(self._calls) if at is None else _count(at)
        found = self._calls.setdefault(at, {"id": "", "name": "", "arguments": ""})
        found["id"] = _text(call.get("id")) or found["id"]
        for part in ("name", "arguments"):
            found[part] += _text((call.get("function") or {}).get(part))


class Client:
    """Asks one server; all of it on one event loop."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        headers = {"accept-encoding": "identity", "user-agent": "cmr"}
        if upstream.key is not None:
            headers["authorization"] = f"Bearer {upstream.key}"
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(upstream.silence, connect=min(CONNECT, upstream.silence)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16),
            # What is sent to this machine is no business of a proxy's.
            trust_env=urlsplit(upstream.url).hostname not in _LOOPBACK,
            follow_redirects=False,
        )

    async def answer(
        self, path: str, body: dict[str, Any], heard: Heard
    ) -> AsyncGenerator[str, None]:
        """The pieces of an answer, which is complete at the end; `heard` knows all of it.

        Raises `Refusal` (429, 502, 504) where it is not to be had.
        """
        body = {**body, **self._upstream.extra, "model": self._upstream.model}
        try:
            async with self._http.stream("POST", self._upstream.url + path, json=body) as reply:
                await _accept(reply)
                async for data in _events(reply.aiter_bytes()):
                    if data == b"[DONE]":
                        break
                    try:
                        chunk = json.loads(data)
                    except (ValueError, RecursionError):
                        raise malformed() from None
                    if new := heard.take(chunk):
                        yield new
        except httpx2.TimeoutException:
            raise Refusal(504, "upstream_timeout", "the model's server took too long", 5) from None
        except httpx2.HTTPError as error:
            log.warning("upstream: %s", type(error).__name__)
            raise Refusal(502, "upstream", "the model's server cannot be reached, or it broke off",
                          5) from None  # fmt: skip
        if not heard.reason:
            raise Refusal(502, "upstream", "the model's server broke off in the middle", 5)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


def malformed() -> Refusal:
    """What is said of a reply that is none of OpenAI's endpoints."""
    return Refusal(502, "upstream", "the model's server replied in a form that is not OpenAI's")


async def _accept(reply: httpx2.Response) -> None:
    """Raises `Refusal` for a reply that is no stream; of its text nothing is repeated."""
    status = reply.status_code
    if status == 429:
        after = reply.headers.get("retry-after", "")
        raise Refusal(429, "upstream_busy", "the model's server has too much to do",
                      int(after) if after.isdigit() and len(after) < 6 else 5)  # fmt: skip
    if status != 200:
        log.warning("upstream: status %d", status)
        raise Refusal(502, "upstream", f"the model's server replied with the status {status}")
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        raise malformed()


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event.

    Lines end at line feeds alone: JSON may hold the other characters at which text is split.
    """
    left, size = b"", 0
    async for part in parts:
        left, size = left + part, size + len(part)
        *lines, left = left.split(b"\n")
        if size > WHOLE or len(left) > LINE:
            raise malformed()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError
    # JSON can write halves of characters, which no reply of ours can hold.
    return re.sub("[\ud800-\udfff]", "\ufffd", value or "")


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return int(value)
