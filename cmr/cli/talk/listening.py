"""The port that ``cmr serve`` listens at, and how it ends: asked once, and asked again."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from cmr.cli.errors import UsageError

GRACE = 5
"""Seconds that replies have to reach their clients when no answer is under way any more."""


def bound(host: str, port: int) -> socket.socket:
    """A socket there, at which nobody is let in yet; raises `UsageError` where it is not free."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A port is not free for a while after a server that has ended.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise UsageError(f"--host {host} --port {port}: cannot be listened at: "
                         f"{error.strerror or error}") from None  # fmt: skip
    return found


class Server(uvicorn.Server):
    """Ends in order however often it is told to: what was told is stored and saved.

    Told once, answers under way have `seconds`, of which a line is shown by `tell`; Ctrl-C once
    more ends them where they are.
    """

    def __init__(self, config: uvicorn.Config, seconds: float, tell: Callable[[str], Any]) -> None:
        config.timeout_graceful_shutdown = round(seconds) + GRACE
        super().__init__(config)
        self._seconds, self._tell = seconds, tell

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        seconds = 0.0 if self.should_exit else self._seconds
        # Noted once: uvicorn raises what it has noted again, twice in the middle of its own end.
        if not self.should_exit:
            super().handle_exit(sig, frame)
        elif sig != signal.SIGINT:
            return
        # Not inside of the handler, which may have come while a lock is held.
        threading.Thread(target=self._end, args=(seconds,), daemon=True).start()

    def _end(self, seconds: float) -> None:
        # Of a client that takes nothing it would tell as of a mistake in the application.
        logging.getLogger("uvicorn.error").disabled = True
        application: Any = self.config.app
        if (service := getattr(application.state, "service", None)) is None:
            return
        if seconds and sum(service.engine.load):
            self._tell(f"ending: answers under way have {seconds:g} s; Ctrl-C once more ends them")
        service.engine.refuse(seconds)
