"""What a model class has done so far, measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cmr._fork import renew


class Recorder:
    """Counts calls, tokens and seconds. Whatever has `measure`, `note` and `stats` takes its place.

    Wall time of a call ends when the call returns: what a GPU still has under way is not in it, but
    what it waited for other threads is. May be used from several threads.
    """

    def __init__(self) -> None:
        self._calls = {"forward": 0, "generate": 0}
        self._noted = {"tokens": 0, "recalls": 0, "stored_blocks": 0}
        self._seconds = self._last = 0.0
        self._counting = threading.Lock()
        renew(self, "_counting", threading.Lock)
        self._mine = threading.local()  # `seconds` of this thread's last call

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Measure one call that succeeds; `kind` is 'forward' or 'generate'."""
        began = time.perf_counter()
        # No `finally`: a call that fails is not counted.
        yield
        self._measured(kind, time.perf_counter() - began)

    def _measured(self, kind: str, seconds: float) -> None:
        self._mine.seconds = seconds
        with self._counting:
            self._last = seconds
            self._calls[kind] += 1
            self._seconds += seconds

    def note(self, *, tokens: int, recalls: int, stored_blocks: int) -> None:
        """Take note of what a call did, the last one that this thread measured; see `stats`."""
        # A lock of its own: calls of several threads end in any order.
        with self._counting:
            self._noted["tokens"] += tokens
            self._noted["recalls"] += recalls
            self._noted["stored_blocks"] += stored_blocks

    def stats(self) -> dict[str, Any]:
        """Plain numbers.

        Returns:
            `forwards`, `generations`, `tokens` (that went through the model, padding not counted),
            `seconds`, `tokens_per_second` (None before the first token), `last_seconds`, `recalls`
            (searches that gave layers something to read), `stored_blocks`.
        """
        with self._counting:
            calls, noted = self._calls.copy(), self._noted.copy()
            seconds, last = self._seconds, self._last
        tokens = noted["tokens"]
        return {
            "forwards": calls["forward"],
            "generations": calls["generate"],
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if tokens and seconds else None,
            "last_seconds": last,
            **noted,
        }
