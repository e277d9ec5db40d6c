"""Tokens become text as they come: no half characters, nothing behind a stop word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Tokens of one character at most: behind these a sign for a broken one is the model's own.
LONGEST = 8


class Pieces:
    """The text of one answer, piece by piece.

    Args:
        tokenizer: by its `decode`.
        stops: texts in front of which the answer ends.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._until = tokenizer, Until(stops)
        self._ids: list[int] = []
        # Text is decoded from `_before` on, some tokens in front of what is new from `_read` on:
        # a tokenizer may write the first token of what it is given in another way.
        self._before = self._read = 0

    @property
    def stopped(self) -> bool:
        """Whether a text in front of which the answer ends has come."""
        return self._until.stopped

    def add(self, token: int) -> str:
        """The text that is sure by this token; '' where more must come first."""
        self._ids.append(token)
        known = self._decoded(self._before, self._read)
        text = self._decoded(self._before, len(self._ids))
        # The first half of a character is written as a sign for a broken one.
        if text.endswith("\ufffd") and len(self._ids) - self._read < LONGEST:
            return ""
        if len(text) <= len(known):
            return ""
        self._before, self._read = self._read, len(self._ids)
        return self._until.add(text[len(known) :])

    def end(self) -> str:
        """What was held back, when nothing comes any more."""
        if self.stopped:
            return ""
        known = self._decoded(self._before, self._read)
        rest = self._decoded(self._before, len(self._ids))[len(known) :]
        return self._until.add(rest) + self._until.end()

    def _decoded(self, start: int, stop: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:stop], skip_special_tokens=True)
        return text


class Until:
    """A text that comes piece by piece and ends in front of a stop word.

    Args:
        stops: texts in front of which it ends.

    Attributes:
        stopped: whether one of them has come.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops, self._held, self.stopped = stops, "", False

    def add(self, new: str) -> str:
        """What of the text held back and the new one may be given out."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """What was held back, when nothing comes any more."""
        rest, self._held = self._held, ""
        return rest


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop word."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
