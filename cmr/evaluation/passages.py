"""Passages of a text as a retriever shows them: its cut, and what fits into some tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PASSAGE = 64
STRIDE = 32


def widen(start: int, end: int, width: int, total: int) -> tuple[int, int]:
    """[start, end) grown evenly to `width` tokens, kept inside [0, total)."""
    left = max(0, min(start - (width - (end - start)) // 2, total - width))
    return left, min(total, left + width)


def passage_starts(total: int) -> range:
    """First tokens of the passages of a text of `total` tokens; the tail may be in none."""
    return range(0, max(1, total - PASSAGE + 1), STRIDE)


def tokens_of(spans: Iterable[tuple[int, int]]) -> set[int]:
    """The tokens of spans [start, end), each once."""
    return {token for start, end in spans for token in range(start, end)}


def filled(
    ranked: Iterable[tuple[int, int]], tokens: int, passages: int, total: int
) -> list[tuple[int, int]]:
    """Spans of together `tokens` tokens: the best passages, each widened; best first.

    A passage that touches what a better one already shows is passed over.

    Args:
        ranked: passages as token spans [start, end), best first.
        tokens: how many are shown, fewer where `ranked` ends before.
        passages: how many these are meant to be in: each is widened to its share.
        total: tokens of the text.
    """
    width = max(PASSAGE, tokens // max(1, passages))
    chosen: list[tuple[int, int]] = []
    seen: set[int] = set()
    for start, end in ranked:
        if len(seen) >= tokens:
            break
        if not seen.isdisjoint(range(start, end)):
            continue
        span = widen(start, end, width, total)
        fresh = [t for t in range(*span) if t not in seen][: tokens - len(seen)]
        if fresh:
            chosen.append((fresh[0], fresh[-1] + 1))
            seen.update(fresh)
    return chosen


def shown(tokenizer: Any, token_ids: list[int], spans: list[tuple[int, int]]) -> list[int]:
    """Token ids of the spans in reading order, overlaps once, parted by an empty line."""
    merged: list[list[int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    # An empty line, so that two places of the text do not read as one sentence.
    gap = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    out: list[int] = []
    for start, end in merged:
        out += (gap if out else []) + list(token_ids[start:end])
    return out
