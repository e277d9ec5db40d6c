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
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        # As a port is not free for a while after a server that has ended.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise UsageError(
            f"--host {host} --port {port}: cannot be listened at: {error.strerror or error}"
        ) from None
    return found


class Server(uvicorn.Server):
    """Ends in order however often it is told to: what was told is stored and saved.

    Told once, answers under way have `seconds`; Ctrl-C once more ends them where they are.

    Args:
        config: of uvicorn, with the application.
        seconds: see above.
        tell: shows a line.
    """

    def __init__(
        self, config: uvicorn.Config, seconds: float, tell: Callable[[str], object]
    ) -> None:
        config.timeout_graceful_shutdown = round(seconds) + GRACE
        super().__init__(config)
        self._seconds, self._tell = seconds, tell

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
            self._begin(self._seconds)
        elif sig == signal.SIGINT:
            # Not noted a second time: uvicorn would raise it again in the middle of its end.
            self._begin(0.0)

    def _begin(self, seconds: float) -> None:
        # Not inside of the handler, which may have come while a lock is held.
        threading.Thread(target=self._end, args=(seconds,), daemon=True).start()

    def _end(self, seconds: float) -> None:
        # A client that takes nothing is no fault of the server's, whose log would tell of one.
        logging.getLogger("uvicorn.error").disabled = True
        application: Any = self.config.app
        engine = getattr(getattr(application.state, "service", None), "engine", None)
        if engine is None:
            return
        if seconds and sum(engine.load):
            self._tell(f"ending: answers under way have {seconds:g} s; Ctrl-C once more, none")
        engine.refuse(seconds)
