"""The specification's services: how stored text is compared, ranked and kept in order."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(
    __name__,
    "ContextualRelevanceScorer MemoryHierarchy MultiCriteriaRanker RetrievalCache "
    "SemanticMemoryMatcher",
)
