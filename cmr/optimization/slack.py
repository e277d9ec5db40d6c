"""When nobody wants a memory."""

from __future__ import annotations

import threading

from cmr._fork import renew
from cmr.config import checks as check
from cmr.integration.memory import Memory

LOOK = 0.02
"""Seconds between two looks whether a request is under way."""


class Slack:
    """Waits until no request of a memory runs or waits, and none did for a moment.

    While it is open the memory notes its requests. May be used from several threads.

    Args:
        memory: whose requests go first.
        quiet: seconds since the last of them ended, 0 or more: whoever asks one question after the
            other leaves no slack in between.

    Attributes:
        waited: times that somebody waited for slack.

    Raises:
        ConfigError: `quiet` is no such number.
    """

    def __init__(self, memory: Memory, quiet: float = 0.05) -> None:
        self.quiet = check.real("quiet", quiet, 0.0)
        self.waited = 0
        self._memory = memory
        self._closed = threading.Event()
        renew(self, "_closed", threading.Event)
        self._end = memory.watch_requests(lambda answers: None)

    @property
    def here(self) -> bool:
        """Whether there is slack now."""
        quiet = self._memory.quiet_seconds
        return quiet > 0 and quiet >= self.quiet

    def wait(self) -> bool:
        """Wait for slack; whether there is some: False once this is closed."""
        if self.here or self._closed.is_set():
            return not self._closed.is_set()
        self.waited += 1
        while not self._closed.wait(LOOK):
            if self.here:
                return True
        return False

    def close(self) -> None:
        """Let go of whoever waits; nothing is noted any more."""
        self._closed.set()
        self._end()

    def __enter__(self) -> Slack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
