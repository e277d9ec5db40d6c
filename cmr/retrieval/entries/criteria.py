"""Several criteria at once, for single entries."""

from __future__ import annotations

from dataclasses import dataclass

from cmr.retrieval.ask import Ask, Scored, Searched, visible
from cmr.retrieval.entries.matcher import SemanticMemoryMatcher
from cmr.retrieval.strategies.criteria import MultiCriteriaRanker


@dataclass(frozen=True)
class EntryCriteria:
    """Entries by several criteria, for blocks of one token.

    The similarity is the matcher's; two entries are as alike as the cosine of their states.

    Attributes:
        ranker: weighs the criteria.
        matcher: says how similar an entry is; what is below its threshold is not ranked.
    """

    ranker: MultiCriteriaRanker
    matcher: SemanticMemoryMatcher

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in [0, 1] of all but diversity, and what diversity needs; see `Strategy`."""
        size, diversity = store.high_water, self.ranker.weights["diversity"]
        line = self.matcher.of_maxima(ask.maxima(store), ask.mask)
        base = self.ranker.base(
            line, store.relevance[:size], store.created[:size], visible(ask, store)
        )
        profiles = store.index[:size, 0].t()[None] if diversity else None
        return Scored(base, line=line, profiles=profiles, diversity=diversity)
