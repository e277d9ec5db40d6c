"""A client of ``cmr serve``: requests, and its refusals as errors of the user's."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from cmr.cli.errors import UsageError

VARIABLE = "CMR_SERVER_KEY"
"""Of the environment: the key of a server that wants one. Command lines are seen by others."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(UsageError):
    """The server did not do what it was asked for; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Stays(urllib.request.HTTPRedirectHandler):
    """A key is shown to the server that was named, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""
        return None


class Server:
    """A server by its address, with or without ``/v1`` behind it; errors name it by an `option`.

    Raises:
        UsageError: it is no address of one.
    """

    def __init__(self, url: str, option: str = "--url ") -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._said, parts = f"{option}{self.url}", urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{option}{url}: an address such as http://127.0.0.1:8000 expected")
        # What is sent to this machine is no business of a proxy's.
        proxies: dict[str, str] | None = {} if parts.hostname in _LOOPBACK else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _Stays)

    def get(self, path: str) -> Any:
        """What a GET replies."""
        return self._json("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What a POST replies."""
        return self._json("POST", path, json.dumps(body, ensure_ascii=False).encode("utf-8"))

    def delete(self, path: str) -> Any:
        """What a DELETE replies."""
        return self._json("DELETE", path, None)

    def page(self, path: str, most: int, seconds: float) -> bytes:
        """A page outside of ``/v1``, of so many bytes at most, which has so many seconds."""
        found = self._sent("GET", path, None, seconds, most + 1)
        if len(found) > most:
            raise UsageError(f"{self._said}: a page of at most {most:,} bytes expected, got more")
        return found

    def _json(self, method: str, path: str, data: bytes | None) -> Any:
        try:
            return json.loads(self._sent(method, f"/v1{path}", data))
        except ValueError:
            raise UsageError(f"{self._said}: what answers there is no `cmr serve`") from None

    def _sent(
        self,
        method: str,
        path: str,
        data: bytes | None,
        seconds: float | None = None,
        most: int | None = None,
    ) -> bytes:
        headers = {"accept": "application/json", "content-type": "application/json"}
        if key := os.environ.get(VARIABLE):
            headers["authorization"] = f"Bearer {key}"
        asked = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with self._opener.open(asked, timeout=seconds) as reply:
                return bytes(reply.read(most))
        except urllib.error.HTTPError as error:
            raise Refused(error.code, f"{self._said}: {_told(error)}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            reason = getattr(reason, "strerror", None) or reason
            raise UsageError(
                f"{self._said}: no server answers there ({reason}); `cmr serve` starts one"
            ) from None
        except http.client.HTTPException:
            raise UsageError(f"{self._said}: what answers there is no `cmr serve`") from None


def _told(error: urllib.error.HTTPError) -> str:
    """What the server says against a request, and what helps where a key is missing."""
    try:
        told = str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}; is it a `cmr serve`?"
    if error.code in (401, 403):
        return f"{told}; put it into {VARIABLE}"
    return told
