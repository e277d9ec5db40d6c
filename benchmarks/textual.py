"""Text retrieval to compare with: BM25 over the same passages, as many tokens as memory reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.documents import normalise

PASSAGE = 64
STRIDE = 32


def widen(start: int, end: int, width: int, total: int) -> tuple[int, int]:
    """[start, end) grown evenly to `width` tokens, kept inside [0, total)."""
    left = max(0, min(start - (width - (end - start)) // 2, total - width))
    return left, min(total, left + width)


class BM25:
    """BM25 over passages of 64 tokens starting every 32, the same cut that memory makes."""

    def __init__(self, tokenizer: Any, token_ids: list[int]) -> None:
        from rank_bm25 import BM25Okapi

        self.token_ids = token_ids
        last = max(1, len(token_ids) - PASSAGE + 1)
        self.starts = list(range(0, last, STRIDE))
        texts = [tokenizer.decode(token_ids[s : s + PASSAGE]) for s in self.starts]
        self.index = BM25Okapi([normalise(t).split() for t in texts])

    def ranked(self, question: str) -> list[tuple[int, int]]:
        """All passages as token spans, best first."""
        scores = self.index.get_scores(normalise(question).split())
        order = np.argsort(-scores, kind="stable")
        return [(self.starts[i], self.starts[i] + PASSAGE) for i in order]

    def spans(self, question: str, tokens: int, passages: int) -> list[tuple[int, int]]:
        """The best passages, each widened, together `tokens` tokens; best first.

        A passage that a better one already shows is passed over.
        """
        width = max(PASSAGE, tokens // max(1, passages))
        total = len(self.token_ids)
        chosen: list[tuple[int, int]] = []
        seen: set[int] = set()
        for start, end in self.ranked(question):
            span = widen(start, end, width, total)
            if not seen.isdisjoint(range(start, end)):
                continue
            fresh = [t for t in range(*span) if t not in seen][: tokens - len(seen)]
            if fresh:
                chosen.append((fresh[0], fresh[-1] + 1))
                seen.update(fresh)
            if len(seen) >= tokens:
                break
        return chosen


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
