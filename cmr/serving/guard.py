"""What stands in front of all endpoints: bodies, hosts, and errors that nobody expected."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmr.serving.refusals import Refusal, log_failure, refusal_of
from cmr.serving.service import Service

log = logging.getLogger(__name__)
BODY_SECONDS = 30.0
"""In which a client must have sent its body."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """Lets through to `app` what is small, whole, valid UTF-8 and meant for this server.

    A page in a browser can send requests to a server on its user's own machine. It cannot send JSON
    there unasked, and what it sends under another name than the machine's is refused where no keys
    are needed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Not known earlier: it begins with the application's lifespan.
        service: Service = scope["app"].state.service
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            _of_this_server(service, headers)
            body = await _body(service, headers, receive)
            await self._app(scope, _again(body, receive), noting)
        except Exception as error:
            log_failure(log, error)
            # A reply that has begun cannot become another one: it breaks off.
            if not status:
                await reply_of(refusal_of(error))(scope, receive, noting)
            elif not isinstance(error, Refusal):
                raise ConnectionError("a reply broke off") from None
        finally:
            route = getattr(scope.get("route"), "path", "other")
            service.watch.request(route, status)


def _of_this_server(service: Service, headers: dict[bytes, bytes]) -> None:
    if service.keys.needed:
        return
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name not in LOOPBACK:
        raise Refusal(403, "host", "this server is for its own machine alone")


async def _body(service: Service, headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body; raises `Refusal` for one that is too large, slow, or no JSON by name."""
    most, size = service.settings.max_body, headers.get(b"content-length", b"0")
    too_large = Refusal(413, "too_large", f"a body of at most {most} bytes expected")
    if not size.isdigit() or int(size[:20]) > most:
        raise too_large
    try:
        body = await asyncio.wait_for(_whole(receive, most), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(408, "slow", "the body did not come in time") from None
    if body is None:
        raise too_large
    if body:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refusal(415, "content_type", "content-type: application/json expected")
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refusal(
                400, "invalid_utf8", f"a body in UTF-8 expected: byte {error.start} is not"
            ) from None
    return body


def reply_of(refusal: Refusal) -> JSONResponse:
    """What a client gets in place of what it asked for."""
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(refusal.to_dict(), refusal.status, headers)


async def _whole(receive: Receive, most: int) -> bytes | None:
    """All that comes; None where it is too much."""
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(found)
        found += message.get("body", b"")
        if len(found) > most:
            return None
        if not message.get("more_body"):
            return bytes(found)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, and then what else comes."""
    left: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
