"""What a model class has done so far, measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Recorder:
    """Counts calls, tokens and seconds. Whatever has `measure`, `note` and `stats` takes its place.

    Wall time of a call ends when the call returns: what a GPU still has under way is not in it.
    """

    def __init__(self) -> None:
        self._calls = {"forward": 0, "generate": 0}
        self._tokens = {"forward": 0, "generate": 0}
        self._seconds = {"forward": 0.0, "generate": 0.0}
        self._noted = {"recalls": 0, "stored_blocks": 0}
        self._last = 0.0

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Measure one call that succeeds; `kind` is 'forward' or 'generate'."""
        began = time.perf_counter()
        yield
        self._last = time.perf_counter() - began
        self._calls[kind] += 1
        self._seconds[kind] += self._last

    def note(self, kind: str, *, tokens: int, recalls: int, stored_blocks: int) -> None:
        """Take note of what a call did.

        Args:
            kind: 'forward' or 'generate'.
            tokens: that went through the model, padding not counted.
            recalls: searches that gave its layers something to read.
            stored_blocks: blocks that became memory.
        """
        self._tokens[kind] += tokens
        self._noted["recalls"] += recalls
        self._noted["stored_blocks"] += stored_blocks

    def stats(self) -> dict[str, Any]:
        """Plain numbers.

        Returns:
            `forwards`, `generations`, `tokens`, `seconds`, `tokens_per_second` (None before the
            first token), `last_seconds`, `recalls` (searches that gave layers
            something to read), `stored_blocks`.
        """
        tokens, seconds = sum(self._tokens.values()), sum(self._seconds.values())
        return {
            "forwards": self._calls["forward"],
            "generations": self._calls["generate"],
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if tokens and seconds else None,
            "last_seconds": self._last,
            **self._noted,
        }
