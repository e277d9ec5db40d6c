"""A client of ``cmr serve``: requests, and its refusals as errors of the user's."""

from __future__ import annotations

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


class Server:
    """A server by its address, with or without ``/v1`` behind it.

    Raises:
        UsageError: it is no address of one.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url}: an address such as http://127.0.0.1:8000 expected")
        # What is sent to this machine is no business of a proxy's.
        proxies: dict[str, str] | None = {} if parts.hostname in _LOOPBACK else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))

    def get(self, path: str) -> Any:
        """What a GET replies."""
        return self._send("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What a POST replies."""
        return self._send("POST", path, body)

    def delete(self, path: str) -> Any:
        """What a DELETE replies."""
        return self._send("DELETE", path, None)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8")
            headers["content-type"] = "application/json"
        if key := os.environ.get(VARIABLE):
            headers["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/v1{path}", data, headers, method=method)
        try:
            with self._opener.open(request) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, f"--url {self.url}: {_told(error)}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            reason = getattr(reason, "strerror", None) or reason
            raise UsageError(
                f"--url {self.url}: no server answers there ({reason}); `cmr serve` starts one"
            ) from None
        except ValueError:
            raise UsageError(f"--url {self.url}: what answers there is no `cmr serve`") from None


def _told(error: urllib.error.HTTPError) -> str:
    """What the server says against a request, and what helps where a key is missing."""
    try:
        told = str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}; is it a `cmr serve`?"
    if error.code == 401:
        return f"{told}; put it into {VARIABLE}"
    return told
