"""The settings of how blocks are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmr.config import checks as check

STRATEGIES = (
    "maxsim",
    "contextual_relevance",
    "multi_criteria",
    "hierarchical",
    "task_specific",
    "hybrid_ensemble",
)
STRATEGY_SYNONYMS = {"semantic_similarity": "maxsim"}
CRITERIA = ("relevance", "similarity", "recency", "diversity")
# Names alone: the settings know of no strategy, and what makes one is kept by the registry.
_PLUGGED_IN: set[str] = set()


def known_strategies() -> tuple[str, ...]:
    """Names of all strategies, those that were plugged in behind the library's own."""
    return STRATEGIES + tuple(sorted(_PLUGGED_IN))


def accept_strategy(name: str) -> None:
    """Let `RetrievalConfig` take a name; see `cmr.register_strategy`."""
    _PLUGGED_IN.add(name)


def _strategy(field: str, value: Any) -> str:
    if isinstance(value, str):
        value = STRATEGY_SYNONYMS.get(value, value)
    return check.choice(field, value, known_strategies())


def _calibration(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:  # an empty name would be the present folder
        raise check.refuse(field, value, "'auto', 'none' or a path")
    return value


@dataclass(frozen=True)
class RetrievalConfig(check.Checked):
    """How blocks are found.

    Attributes:
        strategy: 'maxsim' (synonym 'semantic_similarity'), 'contextual_relevance',
            'multi_criteria', 'hierarchical', 'task_specific', 'hybrid_ensemble', or one of
            `cmr.retrieval.strategies.registry.register_strategy`.
        index_layer: hidden state that is indexed and searched, 0 or more; None: at two fifths of
            the depth.
        blocks: passages recalled at once at most, 0..64; 0: nothing is ever recalled.
        neighbours: blocks read on each side of a passage, 0..8.
        query_tokens: newest tokens that make up the query, 1..4096.
        refresh: decode steps between retrievals, 1 or more.
        gain: a further passage is read when it raises what the passages together explain of the
            question by at least this share, 0..1, of what the first one explains.
        ratio: or when its own score is at least this share, 0..1, of the best, so that it may be
            the one that is meant.
        threshold: certainty below which nothing is recalled, 0 or more; about 1 is what the best
            passage reaches when nothing fits, 1.3 to 2 what one that answers reaches. 0: always.
        similarity_threshold: least cosine in [-1, 1] of a recalled entry; None: no limit.
        context_heads: heads of the contextual scorer, 1..64; None: no such scorer.
        cache_size: queries whose result is kept, 0 or more; None: no cache.
        max_clusters: clusters of the long-term index, 1 or more; None: no clusters.
        criteria_weights: weights of 'relevance', 'similarity', 'recency', 'diversity', each at
            least 0, scaled to sum 1 where used; a dict, kept as its items. None: those of
            `cmr.retrieval.strategies.criteria.DEFAULT_WEIGHTS` where `multi_criteria` needs them.
        calibration: 'auto' takes what was measured for the model by `cmr.calibrate` or comes with
            the library, if anything does; 'none' takes nothing; else the path of such a file.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    strategy: str = check.setting("maxsim", _strategy)
    index_layer: int | None = check.setting(None, check.integer, 0)
    blocks: int = check.setting(2, check.integer, 0, 64)
    neighbours: int = check.setting(1, check.integer, 0, 8)
    query_tokens: int = check.setting(64, check.integer, 1, 4096)
    refresh: int = check.setting(16, check.integer, 1)
    gain: float = check.setting(0.2, check.real, 0.0, 1.0)
    ratio: float = check.setting(0.85, check.real, 0.0, 1.0)
    threshold: float = check.setting(0.8, check.real, 0.0)
    similarity_threshold: float | None = check.setting(None, check.real, -1.0, 1.0)
    context_heads: int | None = check.setting(None, check.integer, 1, 64)
    cache_size: int | None = check.setting(None, check.integer, 0)
    max_clusters: int | None = check.setting(None, check.integer, 1)
    criteria_weights: Mapping[str, float] | tuple[tuple[str, float], ...] | None = check.setting(
        None, check.weights, CRITERIA
    )
    calibration: str = check.setting("auto", _calibration)
