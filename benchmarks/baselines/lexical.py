"""Text retrieval to compare with: BM25 over the passages of very long texts."""

from __future__ import annotations

import numpy as np

from cmr.evaluation.words import normalise


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
