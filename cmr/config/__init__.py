"""The settings of a memory: one frozen dataclass a topic, each value checked when it is made."""

from cmr.config.cmr_config import TOPICS, CMRConfig
from cmr.config.memory import EVICTION_STRATEGIES, SCORING_METHODS, MemoryConfig
from cmr.config.next_token import NextTokenConfig
from cmr.config.optimization import OptimizationConfig
from cmr.config.retrieval import (
    CRITERIA,
    STRATEGIES,
    STRATEGY_SYNONYMS,
    RetrievalConfig,
    accept_strategy,
    known_strategies,
)
from cmr.config.reweave import METHODS, RECONSTRUCTION_METHODS, STATE_METHODS, ReweaveConfig

__all__ = [
    "CRITERIA",
    "EVICTION_STRATEGIES",
    "METHODS",
    "RECONSTRUCTION_METHODS",
    "SCORING_METHODS",
    "STATE_METHODS",
    "STRATEGIES",
    "STRATEGY_SYNONYMS",
    "TOPICS",
    "CMRConfig",
    "MemoryConfig",
    "NextTokenConfig",
    "OptimizationConfig",
    "RetrievalConfig",
    "ReweaveConfig",
    "accept_strategy",
    "known_strategies",
]
