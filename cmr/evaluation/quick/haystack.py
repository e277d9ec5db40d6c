"""Ordinary text with sentences planted in it, at places that a seed draws."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cmr.demo.text import reference_text
from cmr.evaluation.prompts import encode

SHORT, LONG = 80, 700
"""Letters of the paragraphs that are taken: headings say little, tables much at once."""


@lru_cache(maxsize=1)
def _paragraphs() -> tuple[str, ...]:
    """Prose of the Python language reference; what is indented is code or a grammar."""
    pieces = reference_text().split("\n\n")
    return tuple(p for p in pieces if SHORT <= len(p) <= LONG and not p.startswith((" ", "*", "|")))


def haystack(
    tokenizer: Any, tokens: int, planted: Sequence[str], rng: random.Random, ordered: bool = False
) -> str:
    """Paragraphs in a drawn order, about `tokens` tokens with the planted ones, one a share.

    Args:
        tokenizer: counts the tokens.
        tokens: of the text.
        planted: each stands alone between two paragraphs, in a part of the text of its own.
        rng: draws the paragraphs and the places.
        ordered: whether the planted ones keep their order.
    """
    pieces = list(_paragraphs())
    rng.shuffle(pieces)
    # Two more for the empty line behind each paragraph.
    room = tokens - sum(len(encode(tokenizer, piece)) + 2 for piece in planted)
    taken: list[str] = []
    while room > 0 and pieces:
        taken.append(pieces.pop())
        room -= len(encode(tokenizer, taken[-1])) + 2
    waiting = list(planted) if ordered else rng.sample(list(planted), len(planted))
    share = len(taken) / len(waiting)
    # From the last one on, so that the places of the others stay what they are.
    for number in reversed(range(len(waiting))):
        taken.insert(int((number + rng.random()) * share), waiting[number])
    return "\n\n".join(taken)
