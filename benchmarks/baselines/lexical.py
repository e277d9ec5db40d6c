"""Text retrieval to compare with: BM25 over the same passages, as many tokens as memory reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.baselines.passages import PASSAGE, filled, passage_starts
from benchmarks.texts.words import normalise


class Lexical:
    """BM25 over any number of passages: the scores of a million tokens take a millisecond.

    Args:
        texts: the passages. Words are compared casefolded, without punctuation.
    """

    def __init__(self, texts: list[str]) -> None:
        import bm25s

        self.index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self.index.index([normalise(text).split() for text in texts], show_progress=False)

    def scores(self, question: str) -> np.ndarray:
        """`[passages]` float32; zero where no word of the question stands."""
        return np.asarray(self.index.get_scores(normalise(question).split()))


class BM25:
    """BM25 over passages of 64 tokens starting every 32, the same cut that memory makes."""

    def __init__(self, tokenizer: Any, token_ids: list[int]) -> None:
        from rank_bm25 import BM25Okapi

        self.token_ids = token_ids
        self.starts = list(passage_starts(len(token_ids)))
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
        return filled(self.ranked(question), tokens, passages, len(self.token_ids))
