"""Strategies by name: those that come with the library, and where others are plugged in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

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
from cmr.retrieval.strategies.contextual import HEADS, Contextual
from cmr.retrieval.strategies.criteria import MultiCriteria, MultiCriteriaRanker
from cmr.retrieval.strategies.ensemble import ensemble_of
from cmr.retrieval.strategies.hierarchical import Hierarchical
from cmr.retrieval.strategies.lexical import LexicalOverlap
from cmr.retrieval.strategies.semantic import Semantic
from cmr.retrieval.strategies.tasks import TaskSettings, TaskSpecific


@dataclass(frozen=True)
class Parts:
    """What strategies are made of.

    Attributes:
        config: the settings.
        calibration: what was measured for the model; None: nothing was.
        ensemble_weights: items of weights of 'hybrid_ensemble'; None: those that suit most.
    """

    config: RetrievalConfig
    calibration: Calibration | None = None
    ensemble_weights: tuple[tuple[str, float], ...] | None = None


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
    """A new strategy of that name.

    Raises:
        ConfigError: there is none; the message names the nearest one.
        ImportError: it needs a package that is not installed.
    """
    known = STRATEGY_SYNONYMS.get(name, name) if isinstance(name, str) else name
    return _MAKERS[check.choice("strategy", known, known_strategies())](parts)


def _semantic(parts: Parts) -> Strategy:
    return Semantic(parts.calibration)


def _contextual(parts: Parts) -> Strategy:
    return Contextual(parts.calibration, parts.config.context_heads or HEADS)


def _criteria(parts: Parts) -> Strategy:
    ranker = MultiCriteriaRanker(parts.config.criteria_weights)
    return MultiCriteria(ranker, parts.calibration)


def _hierarchical(parts: Parts) -> Strategy:
    return Hierarchical(parts.config.max_clusters, parts.calibration)


def _ensemble(parts: Parts) -> Strategy:
    named = {
        "semantic": _semantic(parts),
        "contextual": _contextual(parts),
        "lexical": LexicalOverlap(),
    }
    return ensemble_of(named, parts.ensemble_weights)


def _by_task(parts: Parts) -> Strategy:
    def make(settings: TaskSettings) -> Strategy:
        weights = cast("tuple[tuple[str, float], ...] | None", settings.ensemble_weights)
        config = settings.over(parts.config)
        return make_strategy(
            settings.strategy, replace(parts, config=config, ensemble_weights=weights)
        )

    return TaskSpecific(make)


_MAKERS: dict[str, StrategyMaker] = {
    "maxsim": _semantic,
    "contextual_relevance": _contextual,
    "multi_criteria": _criteria,
    "hierarchical": _hierarchical,
    "task_specific": _by_task,
    "hybrid_ensemble": _ensemble,
}
