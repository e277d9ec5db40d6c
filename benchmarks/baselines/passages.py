"""The passages that all text retrievers score: their cut, which are chosen, what they show."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

import numpy as np

PASSAGE = 64
STRIDE = 32


def widen(start: int, end: int, width: int, total: int) -> tuple[int, int]:
    """[start, end) grown evenly to `width` tokens, kept inside [0, total)."""
    left = max(0, min(start - (width - (end - start)) // 2, total - width))
    return left, min(total, left + width)


def passage_starts(total: int) -> range:
    """First tokens of the passages of a text of `total` tokens; the tail may be in none."""
    return range(0, max(1, total - PASSAGE + 1), STRIDE)


def passage_texts(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """The text of each passage: tokens [32p, 32p + 64)."""
    starts = passage_starts(len(token_ids))
    return list(tokenizer.batch_decode([token_ids[s : s + PASSAGE] for s in starts]))


def tokens_of(spans: Iterable[tuple[int, int]]) -> set[int]:
    """The tokens of spans [start, end), each once."""
    return {token for start, end in spans for token in range(start, end)}


class Span(Protocol):
    """Tokens [start, end)."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


def best_passages(scores: np.ndarray, k: int) -> list[int]:
    """The `k` passages with the highest scores that do not overlap each other, best first.

    Passage p shows tokens [32p, 32p + 64): with it, p - 1 and p + 1 are out. Of equal scores the
    first is taken. Fewer come back when no more fit; one whose score is -inf is never taken.

    Args:
        scores: `[passages]`, any real dtype.
        k: how many.

    Raises:
        ValueError: when `scores` has another shape or holds NaN, or `k` is negative.
    """
    left = np.array(scores, dtype=np.float64)
    if left.ndim != 1 or np.isnan(left).any():
        raise ValueError(f"one number a passage expected, none NaN, got shape {left.shape}")
    if k < 0:
        raise ValueError(f"a number of passages of 0 or more expected, got {k}")
    chosen: list[int] = []
    reach = PASSAGE // STRIDE - 1
    while len(chosen) < k and len(left):
        best = int(left.argmax())
        if left[best] == -np.inf:
            break
        chosen.append(best)
        left[max(0, best - reach) : best + reach + 1] = -np.inf
    return chosen


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


def found(fact: Span, passages: Collection[int]) -> bool:
    """Whether all tokens of the fact lie in the passages together.

    The one hit rule for all systems; of a question that needs two facts, the share found counts.
    """
    shown = {p + i for p in passages for i in range(PASSAGE // STRIDE)}
    return shown.issuperset(range(fact.start // STRIDE, (fact.end - 1) // STRIDE + 1))


def shown(tokenizer: Any, token_ids: list[int], spans: list[tuple[int, int]]) -> list[int]:
    """Token ids of the spans in reading order, overlaps once, parted by an empty line."""
    merged: list[list[int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    gap = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    out: list[int] = []
    for start, end in merged:
        out += (gap if out else []) + list(token_ids[start:end])
    return out
