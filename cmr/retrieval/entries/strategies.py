"""The strategies for single entries by name, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from cmr.config import RetrievalConfig
from cmr.retrieval.ask import Ask, Scored, Searched, Strategy, visible
from cmr.retrieval.entries.matcher import SemanticMemoryMatcher
from cmr.retrieval.strategies.contextual import HEADS, ContextualRelevanceScorer
from cmr.retrieval.strategies.criteria import MultiCriteriaRanker
from cmr.retrieval.strategies.ensemble import PARTS, RANK_CONSTANT, ensemble_of
from cmr.retrieval.strategies.hierarchical import Hierarchical
from cmr.retrieval.strategies.lexical import LexicalOverlap
from cmr.retrieval.strategies.tasks import TaskSettings, TaskSpecific


@dataclass(frozen=True)
class EntryCriteria:
    """Entries by several criteria, for blocks of one token.

    The similarity is the matcher's, and what is below its threshold is not ranked. Two entries are
    as alike as the cosine of their states.
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


@dataclass(frozen=True)
class EntryParts:
    """What strategies for entries are made of; `make` makes another strategy by its name.

    `ensemble_weights` are items of weights of 'hybrid_ensemble'; None: equal ones.
    """

    hidden_size: int
    config: RetrievalConfig
    matcher: SemanticMemoryMatcher
    ranker: MultiCriteriaRanker
    make: Callable[[str, EntryParts], Strategy]
    ensemble_weights: tuple[tuple[str, float], ...] | None = None


EntryStrategyMaker = Callable[[EntryParts], Strategy]


def _contextual(parts: EntryParts) -> Strategy:
    heads = parts.config.context_heads
    heads = min(HEADS, parts.hidden_size) if heads is None else heads
    return ContextualRelevanceScorer(parts.hidden_size, heads)


def _ensemble(parts: EntryParts) -> Strategy:
    named = {
        "semantic": parts.matcher,
        # By its name, so that a scorer of the user's takes part, too.
        "contextual": parts.make("contextual_relevance", parts),
        "lexical": LexicalOverlap(),
    }
    weights = parts.ensemble_weights
    equal = [(name, 1.0) for name in PARTS]
    return ensemble_of(named, equal if weights is None else weights, RANK_CONSTANT)


def _by_task(parts: EntryParts) -> Strategy:
    def make(settings: TaskSettings) -> Strategy:
        config = settings.over(parts.config)
        ranker = MultiCriteriaRanker(config.criteria_weights)
        weights = cast("tuple[tuple[str, float], ...] | None", settings.ensemble_weights)
        made = replace(parts, config=config, ranker=ranker, ensemble_weights=weights)
        return parts.make(settings.strategy, made)

    return TaskSpecific(make)


MAKERS: dict[str, EntryStrategyMaker] = {
    "maxsim": lambda parts: parts.matcher,
    "contextual_relevance": _contextual,
    "multi_criteria": lambda parts: EntryCriteria(parts.ranker, parts.matcher),
    "hierarchical": lambda parts: Hierarchical(parts.config.max_clusters),
    "task_specific": _by_task,
    "hybrid_ensemble": _ensemble,
}
"""Strategy to what makes it for entries; `AdvancedMemoryRetriever.register` adds to a retriever."""
