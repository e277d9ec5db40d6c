"""The settings of a memory: one frozen dataclass a topic, each value checked when it is built.

`CMRConfig()` is the measured default. `CMRConfig.from_dict` takes plain dictionaries, nested by
topic or flat, and `with_overrides` changes single fields by name. A value that names something
this version does not implement parses, and `CMRConfig.unavailable` says so: attaching refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cmr.config import checks as check
from cmr.config import keys
from cmr.config.memory import EVICTION_STRATEGIES, SCORING_METHODS, MemoryConfig
from cmr.config.next_token import NextTokenConfig
from cmr.errors import ConfigError

STRATEGIES = (
    "maxsim",
    "contextual_relevance",
    "multi_criteria",
    "hierarchical",
    "task_specific",
    "hybrid_ensemble",
)
STRATEGY_SYNONYMS = {"semantic_similarity": "maxsim"}
_PLUGGED_IN: set[str] = set()
CRITERIA = ("relevance", "similarity", "recency", "diversity")
METHODS = ("attention", "weighted_sum", "gated", "residual")
STATE_METHODS = ("weighted_sum", "gated", "residual")
"""Those that blend stored states into what enters a layer."""
RECONSTRUCTION_METHODS = ("hierarchical", "attention", "weighted_sum", "recompute")
UNNAMED = ("row", "refuse")
POSITIONS = ("constant", "layout", "true")


def known_strategies() -> tuple[str, ...]:
    """Names of all strategies, those that were plugged in behind the library's own."""
    return STRATEGIES + tuple(sorted(_PLUGGED_IN))


def accept_strategy(name: str) -> None:
    """Let `RetrievalConfig` take a name; see `cmr.register_strategy`."""
    _PLUGGED_IN.add(name)


@dataclass(frozen=True)
class RetrievalConfig:
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

    strategy: str = "maxsim"
    index_layer: int | None = None
    blocks: int = 2
    neighbours: int = 1
    query_tokens: int = 64
    refresh: int = 16
    gain: float = 0.2
    ratio: float = 0.85
    threshold: float = 0.8
    similarity_threshold: float | None = None
    context_heads: int | None = None
    cache_size: int | None = None
    max_clusters: int | None = None
    criteria_weights: Mapping[str, float] | tuple[tuple[str, float], ...] | None = None
    calibration: str = "auto"

    def __post_init__(self) -> None:
        """Checks every field and resolves synonyms."""
        if isinstance(self.strategy, str):
            check.put(self, "strategy", STRATEGY_SYNONYMS.get(self.strategy, self.strategy))
        check.choice("strategy", self.strategy, known_strategies())
        check.put(self, "blocks", check.integer("blocks", self.blocks, 0, 64))
        check.put(self, "neighbours", check.integer("neighbours", self.neighbours, 0, 8))
        check.put(self, "query_tokens", check.integer("query_tokens", self.query_tokens, 1, 4096))
        check.put(self, "refresh", check.integer("refresh", self.refresh, 1))
        for name in ("gain", "ratio"):
            check.put(self, name, check.real(name, getattr(self, name), 0.0, 1.0))
        check.put(self, "threshold", check.real("threshold", self.threshold, 0.0))
        for name, low, high in (
            ("index_layer", 0, None),
            ("context_heads", 1, 64),
            ("cache_size", 0, None),
            ("max_clusters", 1, None),
        ):
            value = getattr(self, name)
            if value is not None:
                check.put(self, name, check.integer(name, value, low, high))
        if not isinstance(self.calibration, str) or not self.calibration:
            raise check.refuse("calibration", self.calibration, "'auto', 'none' or a path")
        if self.similarity_threshold is not None:
            least = check.real("similarity_threshold", self.similarity_threshold, -1.0, 1.0)
            check.put(self, "similarity_threshold", least)
        if self.criteria_weights is not None:
            items = check.weights("criteria_weights", self.criteria_weights, CRITERIA)
            check.put(self, "criteria_weights", items)


@dataclass(frozen=True)
class ReweaveConfig:
    """How what was recalled enters the model.

    Attributes:
        method: 'attention' reads blocks through each layer's own attention. The others blend a
            weighted sum m of stored states into the states h that enter a layer: 'weighted_sum'
            h' = (1 - w) h + w m, 'residual' h' = h + w m, 'gated' h' = h + g (m - h) with g = w
            times how well h fits its best stored state, 0 where none fits.
        memory_weight: a number w in [0, 1], or 'auto'. With 'attention', logit(w) is added to the
            memory's logits: 0 is off, 0.5 one joint softmax (below it hardly anything is recalled),
            0.88 reads strongly, 'auto' follows how certain retrieval is. With the others w is as
            above and 'auto' means 0.1.
        positions: 'constant' puts memory one window away, 'layout' lays the blocks out just before
            the window, 'true' keeps their distances.
        sink_guard: first tokens of a text without a real beginning that do not read memory, 0..64;
            above 0 the first token of a stored text is not read either.
        layers: layers that read memory (synonym 'intervention_layers'). None: with `cmr.attach`
            the target layers, in the model classes the range that those are by default.
        reconstruction_method: what is read where not all that is recalled may be. 'attention':
            the tokens that match best, in runs, as they are; 'weighted_sum': half as many of them,
            and all others summed up in groups of neighbours; 'hierarchical': the best passage
            whole, the others in groups that get coarser; 'recompute': those of 'attention', run
            through the model again. Where states
            are blended, also how m is formed: by a softmax over the cosines ('weighted_sum'), over
            sqrt(hidden) times the cosines ('attention', 'recompute'), or inside each passage and
            then over passages ('hierarchical'). None: chosen like 'attention', summed like
            'weighted_sum'.
        max_memory_tokens: most memory tokens a row reads at once, 1 or more; None: as retrieval
            gives.
        compression_ratio: share of a row's recalled tokens that is read, in (0, 1], rounded down
            and one at least; None: all.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    method: str = "attention"
    memory_weight: float | str = "auto"
    positions: str = "constant"
    sink_guard: int = 8
    layers: tuple[int, ...] | None = None
    reconstruction_method: str | None = None
    max_memory_tokens: int | None = None
    compression_ratio: float | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        check.choice("method", self.method, METHODS)
        if isinstance(self.memory_weight, str):
            if self.memory_weight != "auto":
                raise check.refuse(
                    "memory_weight", self.memory_weight, "'auto' or a number in [0, 1]"
                )
        else:
            weight = check.real("memory_weight", self.memory_weight, 0.0, 1.0)
            check.put(self, "memory_weight", weight)
        check.choice("positions", self.positions, POSITIONS)
        check.put(self, "sink_guard", check.integer("sink_guard", self.sink_guard, 0, 64))
        if self.layers is not None:
            check.put(self, "layers", check.layers("layers", self.layers))
        if self.reconstruction_method is not None:
            check.choice(
                "reconstruction_method", self.reconstruction_method, RECONSTRUCTION_METHODS
            )
        check.read_limits(self)

    @property
    def bias(self) -> float | None:
        """logit(memory_weight): -inf at 0, +inf at 1; None where 'auto' decides at each recall."""
        if isinstance(self.memory_weight, str):
            return None
        if self.memory_weight in (0.0, 1.0):
            return math.copysign(math.inf, self.memory_weight - 0.5)
        return math.log(self.memory_weight) - math.log1p(-self.memory_weight)

    @property
    def fixed_gate(self) -> float:
        """The w of the methods that blend states: memory_weight, 0.1 where that is 'auto'."""
        return 0.1 if isinstance(self.memory_weight, str) else self.memory_weight


@dataclass(frozen=True)
class OptimizationConfig:
    """Which helpers may steer a running memory; each True or False."""

    enable_adaptive_thresholds: bool = False
    enable_batch_optimization: bool = False
    enable_prefetching: bool = False
    enable_background_optimization: bool = False

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in keys.fields_of(self):
            check.flag(name, getattr(self, name))


TOPICS = {
    "memory": MemoryConfig,
    "retrieval": RetrievalConfig,
    "reweave": ReweaveConfig,
    "next_token": NextTokenConfig,
    "optimization": OptimizationConfig,
}


@dataclass(frozen=True)
class CMRConfig:
    """All settings of one attached memory.

    Attributes:
        window: tokens that the model sees locally, 16 or more, above `memory.sinks` and
            `reweave.sink_guard`; the model's own limit is checked at attach.
        memory: what is stored. A dict of its fields is taken too.
        retrieval: how blocks are found. Likewise.
        reweave: how they enter the model. Likewise.
        next_token: whether they say what comes next, too. Likewise.
        optimization: which helpers may steer. Likewise.
        unnamed: requests without a session: 'row' makes row i session `str(i)`, as scripts want it;
            'refuse' raises `SessionError`, as servers want it, where nobody may share a session by
            mistake.

    Raises:
        ConfigError: a value is unknown, of the wrong type or out of its range.
    """

    window: int = 512
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    reweave: ReweaveConfig = field(default_factory=ReweaveConfig)
    next_token: NextTokenConfig = field(default_factory=NextTokenConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    unnamed: str = "row"

    def __post_init__(self) -> None:
        """Checks the window and that each topic has its type."""
        for topic, kind in TOPICS.items():
            if not isinstance(getattr(self, topic), kind):
                raise check.refuse(topic, getattr(self, topic), f"a {kind.__name__}")
        check.put(self, "window", check.integer("window", self.window, 16))
        check.choice("unnamed", self.unnamed, UNNAMED)
        least = max(self.memory.sinks, self.reweave.sink_guard)
        if self.window <= least:
            raise check.refuse(
                "window", self.window, f"more than the {least} tokens of sinks and sink_guard"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> CMRConfig:
        """Builds the settings from dictionaries, nested by topic or flat.

        Args:
            settings: field names, synonyms (`buffer_size`, `max_entries_per_layer` and
                `max_states_per_layer` for `budget`; `retrieval_strategy` for `strategy`;
                `intervention_layers` for `layers`; `integration_method` for `method`) and topics
                (`memory_config`, `retrieval_config`, `reconstruction_config`,
                `optimization_config`, or without `_config`). Inside `reconstruction_config`,
                `method` is `reconstruction_method`. Several names of the budget: the least holds.
                A budget below the default block size makes the blocks as small as itself.

        Raises:
            ConfigError: unknown key (names the nearest known one), one field given twice with
                different values, or a bad value.
        """
        return cls()._changed(keys.resolve(settings, TOPICS))

    def with_overrides(self, **flat: Any) -> CMRConfig:
        """These settings with single fields changed, by the names that `from_dict` takes."""
        return self._changed(keys.resolve(flat, TOPICS))

    def _changed(self, changes: dict[str, dict[str, Any]]) -> CMRConfig:
        memory = changes.get("memory", {})
        budget = memory.get("budget")
        if isinstance(budget, int) and 0 < budget < self.memory.block_size:
            memory.setdefault("block_size", budget)
        parts = {
            topic: replace(getattr(self, topic), **changes[topic])
            for topic in TOPICS
            if changes.get(topic)
        }
        return replace(self, **parts, **changes.get("", {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON; `from_dict` of them equals these settings."""
        plain = asdict(self)
        weights = plain["retrieval"]["criteria_weights"]
        if weights is not None:
            plain["retrieval"]["criteria_weights"] = dict(weights)
        listed = (("memory", "target_layers"), ("reweave", "layers"), ("next_token", "knn_layers"))
        for topic, name in listed:
            if plain[topic][name] is not None:
                plain[topic][name] = list(plain[topic][name])
        return plain

    def unavailable(self) -> list[str]:
        """One line for each value that is legal but not implemented in this version."""
        lines = []
        for topic, names in keys.AVAILABLE.items():
            for name, available in names.items():
                value = getattr(getattr(self, topic), name)
                if value not in available:
                    which = ", ".join(repr(item) for item in available)
                    why = keys.INSTEAD.get(topic, f"not available yet (available: {which})")
                    lines.append(f"{topic}.{name}={value!r}: {why}")
        return lines


__all__ = [
    "EVICTION_STRATEGIES",
    "SCORING_METHODS",
    "CMRConfig",
    "ConfigError",
    "MemoryConfig",
    "NextTokenConfig",
    "OptimizationConfig",
    "RetrievalConfig",
    "ReweaveConfig",
]
