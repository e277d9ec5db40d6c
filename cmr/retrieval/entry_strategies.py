"""The strategies for single entries by name, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cmr.config import RetrievalConfig
from cmr.retrieval.ask import Strategy
from cmr.retrieval.contextual import HEADS, ContextualRelevanceScorer
from cmr.retrieval.criteria import MultiCriteriaRanker
from cmr.retrieval.ensemble import RANK_CONSTANT, HybridEnsemble
from cmr.retrieval.entry_criteria import EntryCriteria
from cmr.retrieval.hierarchical import Hierarchical
from cmr.retrieval.lexical import LexicalOverlap
from cmr.retrieval.matcher import SemanticMemoryMatcher
from cmr.retrieval.tasks import TaskSettings, TaskSpecific


@dataclass(frozen=True)
class EntryParts:
    """What strategies for entries are made of.

    Attributes:
        hidden_size: width of the states.
        config: the settings.
        matcher: compares states.
        ranker: weighs criteria.
        make: makes another strategy by its name.
    """

    hidden_size: int
    config: RetrievalConfig
    matcher: SemanticMemoryMatcher
    ranker: MultiCriteriaRanker
    make: Callable[[str, EntryParts], Strategy]


EntryStrategyMaker = Callable[[EntryParts], Strategy]


def _contextual(parts: EntryParts) -> Strategy:
    heads = parts.config.context_heads
    heads = min(HEADS, parts.hidden_size) if heads is None else heads
    return ContextualRelevanceScorer(parts.hidden_size, heads)


def _ensemble(parts: EntryParts) -> Strategy:
    others = [(parts.make("contextual_relevance", parts), 1.0), (LexicalOverlap(), 1.0)]
    return HybridEnsemble([(parts.matcher, 1.0), *others], RANK_CONSTANT)


def _by_task(parts: EntryParts) -> Strategy:
    def make(settings: TaskSettings) -> Strategy:
        config = settings.over(parts.config)
        ranker = MultiCriteriaRanker(config.criteria_weights)
        return parts.make(settings.strategy, replace(parts, config=config, ranker=ranker))

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
