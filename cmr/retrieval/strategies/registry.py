"""Strategies by name: those that come with the library, and where others are plugged in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cmr.config import (
    STRATEGIES,
    STRATEGY_SYNONYMS,
    RetrievalConfig,
    accept_strategy,
    known_strategies,
)
from cmr.config import checks as check
from cmr.retrieval.ask import Strategy
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.strategies.asked import Asked
from cmr.retrieval.strategies.contextual import HEADS, Contextual, ContextualRelevanceScorer
from cmr.retrieval.strategies.criteria import MultiCriteria, MultiCriteriaRanker
from cmr.retrieval.strategies.ensemble import RANK_CONSTANT, ensemble_of
from cmr.retrieval.strategies.hierarchical import Hierarchical
from cmr.retrieval.strategies.lexical import LexicalOverlap
from cmr.retrieval.strategies.semantic import Semantic, SemanticMemoryMatcher
from cmr.retrieval.strategies.tasks import TaskSettings, TaskSpecific, Weights
from cmr.retrieval.vocabulary import Vocabulary


@dataclass(frozen=True)
class Parts:
    """What strategies are made of.

    Attributes:
        config: the settings.
        calibration: what was measured for the model; None: nothing was.
        ensemble_weights: of 'hybrid_ensemble'; None: those that suit most.
        matcher: compares single entries; None: passages of blocks are searched.
        own: makers of one retriever's strategies, which go before those of all.
        vocabulary: the model's tokens; None: nobody knows them, and what is asked is one part.
    """

    config: RetrievalConfig
    calibration: Calibration | None = None
    ensemble_weights: Weights | None = None
    matcher: SemanticMemoryMatcher | None = None
    own: Mapping[str, Callable[[Parts], Strategy]] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None


StrategyMaker = Callable[[Parts], Strategy]


def register_strategy(name: str, maker: StrategyMaker) -> None:
    """Plug in a strategy: from then on `RetrievalConfig(strategy=name)` is taken.

    Args:
        name: what it is asked for by; a name given before gets the new maker, but the library's own
            cannot be given away.
        maker: makes the strategy for one attached memory.

    Raises:
        ConfigError: the name is empty, no text, or one of the library's own.
        TypeError: the maker cannot be called.
    """
    if not isinstance(name, str) or not name or name in (*STRATEGIES, *STRATEGY_SYNONYMS):
        raise check.refuse("name", name, "a name that is not one of the library's strategies")
    if not callable(maker):
        raise TypeError(f"maker: something to call expected, got {type(maker).__name__}")
    _MAKERS[name] = maker
    accept_strategy(name)


def make_strategy(name: str, parts: Parts) -> Strategy:
    """A new strategy of that name; a ConfigError names the nearest one where there is none."""
    known = STRATEGY_SYNONYMS.get(name, name) if isinstance(name, str) else name
    if known in parts.own:
        return parts.own[known](parts)
    return _MAKERS[check.choice("strategy", known, known_strategies())](parts)


def _semantic(parts: Parts) -> Strategy:
    return Semantic(parts.calibration) if parts.matcher is None else parts.matcher


def _default(parts: Parts) -> Strategy:
    if parts.vocabulary is None or parts.matcher is not None:
        return _semantic(parts)
    return Asked(parts.vocabulary, parts.calibration)


def _contextual(parts: Parts) -> Strategy:
    heads = parts.config.context_heads
    if parts.matcher is None:
        return Contextual(parts.calibration, heads or HEADS)
    width = parts.matcher.hidden_size
    return ContextualRelevanceScorer(width, heads or min(HEADS, width))


def _criteria(parts: Parts) -> Strategy:
    return MultiCriteria(MultiCriteriaRanker(parts.config.criteria_weights), parts.matcher)


def _ensemble(parts: Parts) -> Strategy:
    named: dict[str, Strategy] = {
        "semantic": _semantic(parts),
        # By its name, so that a retriever's own scorer takes part, too.
        "contextual": make_strategy("contextual_relevance", parts),
        "lexical": LexicalOverlap(),
    }
    if parts.matcher is None:
        return ensemble_of(named, parts.ensemble_weights)
    # The measured weights are those of passages: of entries nothing was measured.
    weights = (
        dict.fromkeys(named, 1.0) if parts.ensemble_weights is None else parts.ensemble_weights
    )
    return ensemble_of(named, weights, RANK_CONSTANT)


def _by_task(parts: Parts) -> Strategy:
    def make(settings: TaskSettings) -> Strategy:
        config, weights = settings.over(parts.config), settings.ensemble_weights
        made_of = replace(parts, config=config, ensemble_weights=weights)
        return make_strategy(settings.strategy, made_of)

    return TaskSpecific(make)


# To add a strategy: write one file in this folder with a class that has `score` (see `Strategy` in
# `cmr/retrieval/ask.py`; docs/retrieval.md shows a whole one), and add a line here that makes it.
# Its name also goes into `STRATEGIES` of `cmr/config/topics.py`, so that settings take it, and into
# `LOOK_AT_HEADS` below where it reads `ask.heads`.
# `score` is all it needs: floors, neighbours and how much is read are the search's own business.
_MAKERS: dict[str, StrategyMaker] = {
    "maxsim": _default,
    "contextual_relevance": _contextual,
    "multi_criteria": _criteria,
    "hierarchical": lambda parts: Hierarchical(parts.config.max_clusters, parts.calibration),
    "task_specific": _by_task,
    "hybrid_ensemble": _ensemble,
}

LOOK_AT_HEADS = ("contextual_relevance", "hybrid_ensemble", "task_specific")
"""Strategies that look at `Ask.heads`. Others are spared the attention queries of those layers."""
