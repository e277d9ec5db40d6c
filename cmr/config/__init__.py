"""The settings of a memory: one frozen dataclass a topic, each value checked when it is made."""

from cmr.config.cmr_config import TOPICS, CMRConfig, fields_of, resolve
from cmr.config.topics import (
    CRITERIA,
    EVICTION_STRATEGIES,
    METHODS,
    RECONSTRUCTION_METHODS,
    SCORING_METHODS,
    STATE_METHODS,
    STRATEGIES,
    STRATEGY_SYNONYMS,
    MemoryConfig,
    NextTokenConfig,
    OptimizationConfig,
    RetrievalConfig,
    ReweaveConfig,
    accept_strategy,
    known_strategies,
)

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
    "fields_of",
    "known_strategies",
    "resolve",
]
