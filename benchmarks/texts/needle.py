"""The public needle in a haystack: its essays, its needle, its question."""

from __future__ import annotations

from typing import Any

from benchmarks.texts.essays import raw_essays
from cmr.evaluation.prompts import encode

NEEDLE = (
    "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park "
    "on a sunny day.\n"
)
QUESTION = "What is the best thing to do in San Francisco?"


class NeedleText:
    """The essays as tokens, one after the other by name, repeated where they are too short."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self.needle = encode(tokenizer, NEEDLE)
        self.periods = {encode(tokenizer, "a" + end)[-1] for end in (".", ".\n", ".\n\n")}
        self.tokens: list[int] = []
        while len(self.tokens) < longest:
            for _, text in raw_essays():
                self.tokens += encode(tokenizer, text)
                if len(self.tokens) >= longest:
                    break

    def text(self, length: int, depth: float) -> tuple[list[int], int]:
        """`length` tokens with the needle after the last full stop before `depth` %.

        Returns:
            The token ids and the position of the needle's first token.
        """
        hay = self.tokens[: length - len(self.needle)]
        at = len(hay) if depth >= 100 else int(len(hay) * depth / 100)
        while 0 < at < len(hay) and hay[at - 1] not in self.periods:
            at -= 1
        return hay[:at] + self.needle + hay[at:], at
