"""BM25 over passages of a text: the retriever that memory is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from cmr.evaluation.passages import PASSAGE, filled, passage_starts
from cmr.evaluation.words import normalise


class BM25:
    """BM25 over passages of 64 tokens starting every 32, the same cut that memory makes."""

    def __init__(self, tokenizer: Any, token_ids: list[int]) -> None:
        from rank_bm25 import BM25Okapi

        self.token_ids = token_ids
        self.starts = list(passage_starts(len(token_ids)))
        if self.starts[-1] + PASSAGE < len(token_ids):
            # What is said last is found, too.
            self.starts.append(len(token_ids) - PASSAGE)
        texts = [tokenizer.decode(token_ids[s : s + PASSAGE]) for s in self.starts]
        self.index = BM25Okapi([normalise(t).split() for t in texts])

    def ranked(self, question: str) -> list[tuple[int, int]]:
        """All passages as token spans, best first."""
        scores = self.index.get_scores(normalise(question).split())
        # Stable: of equal scores the passage that stands first, on every machine.
        order = np.argsort(-scores, kind="stable")
        return [(self.starts[i], self.starts[i] + PASSAGE) for i in order]

    def spans(self, question: str, tokens: int, passages: int) -> list[tuple[int, int]]:
        """The best passages, each widened, together `tokens` tokens; best first.

        A passage that a better one already shows is passed over.
        """
        return filled(self.ranked(question), tokens, passages, len(self.token_ids))
