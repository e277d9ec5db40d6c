"""The passages that all text retrievers score: which are chosen, and what counts as found."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import numpy as np

from cmr.evaluation.passages import PASSAGE, STRIDE, passage_starts


def passage_texts(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """The text of each passage: tokens [32p, 32p + 64)."""
    starts = passage_starts(len(token_ids))
    return list(tokenizer.batch_decode([token_ids[s : s + PASSAGE] for s in starts]))


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


def found(fact: Span, passages: Collection[int]) -> bool:
    """Whether all tokens of the fact lie in the passages together.

    The one hit rule for all systems; of a question that needs two facts, the share found counts.
    """
    shown = {p + i for p in passages for i in range(PASSAGE // STRIDE)}
    return shown.issuperset(range(fact.start // STRIDE, (fact.end - 1) // STRIDE + 1))
