"""The settings of a memory by topic: what is stored, how it is found, how it enters the model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmr.config import checks as check

STORES = ("auto", "kv", "states", "tokens")
INDEX_DTYPES = ("model", "float32", "bfloat16", "float16")
SCORING_METHODS = ("surprise", "attention_based", "variance_based", "hybrid", "gradient_based")
EVICTION_STRATEGIES = ("oldest", "lru_relevance", "lru", "relevance")
# With these, blocks are scored while they are read; the others need no relevance.
LOOK_AT_RELEVANCE = ("lru_relevance", "relevance")
LONG_TERM_STORES = ("tokens", "kv")
# Powers of ten as on a disk's label, powers of two with an i.
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MAX_SIZE = 1 << 62
MAX_LIFETIME = 1e12
"""Seconds, some 30,000 years."""
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
METHODS = ("attention", "weighted_sum", "gated", "residual")
# Those that blend stored states into what enters a layer.
STATE_METHODS = ("weighted_sum", "gated", "residual")
RECONSTRUCTION_METHODS = ("hierarchical", "attention", "weighted_sum", "recompute")
POSITIONS = ("constant", "layout", "true")


def size(text: str) -> int:
    """Bytes of '512MiB', '1.5 GB' and the like; raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B)", text.strip().upper())
    if found is None or found[2] not in UNITS:
        raise ValueError(f"a size such as '512MiB' or '1.5GB' expected, got {text!r}")
    amount = float(found[1]) * UNITS[found[2]]
    if amount > MAX_SIZE:
        raise ValueError(f"a size of at most {MAX_SIZE:,} bytes expected, got {text[:40]!r}")
    return int(amount)


def budget_of(name: str, value: object, least: int) -> int | str:
    """`value`, if it is a number of tokens of at least `least`, or a size."""
    if not isinstance(value, str):
        return check.integer(name, value, least)
    try:
        size(value)
    except ValueError:
        wanted = f"a number of tokens of at least {least}, or a size such as '512MiB' or '1.5GB',"
        raise check.refuse(name, value, wanted) from None
    return value


def lifetime(name: str, value: object) -> float:
    """`value` as seconds above 0, at most `MAX_LIFETIME`."""
    seconds = check.positive(name, value, "a number of seconds")
    return check.real(name, seconds, 0.0, MAX_LIFETIME)


@dataclass(frozen=True)
class MemoryConfig(check.Checked):
    """What is stored, and how much of it.

    A budget is a number of tokens, or a size such as '512MiB' or '1.5GB'. Whole blocks are stored:
    as many as fit.

    Attributes:
        target_layers: hidden states that are captured, as indices into transformers'
            `hidden_states` (state i enters block i). With `cmr.attach` those are the layers whose
            memory is stored and read, and a range without gaps is needed: every second layer
            recalls nothing. The model classes put them into their buffer, and read where `layers`
            says. None: the contiguous range from 13 % to 83 % of the depth; of a model class's
            buffer the searched layer. Else distinct integers from 0 on; the upper end is checked
            at attach.
        budget: tokens kept per layer beside the model, the tier 'recent'; or bytes over all layers.
        working_budget: the same of the tier under it, in host memory. 0: no such tier.
        long_term_budget: the same of the last tier, in a file: index vectors in 8 bits and token
            ids. 0: no such tier.
        long_term_store: 'tokens' runs a passage of the last tier through the model again when it is
            recalled, 'kv' keeps its keys and values (or states) in the file, too.
        long_term_folder: folder of that file, which has no name there and ends with the process.
            None: the system's place for temporary files.
        recall_context: tokens of the text before a passage that are run with it when it is run
            through the model again, 0 or more; the model's own limit is checked at attach.
        block_size: tokens in a block, the unit of storage and eviction, 1..512, at most `budget`.
        store: 'kv' keeps un-rotated keys and values, 'states' hidden states, 'tokens' only token
            ids (recomputed when recalled), 'auto' the smaller of the first two for the model.
        sinks: first tokens of the local cache that never leave it, 0..64.
        left_context: tokens of left context kept while reading window by window, 0 or more.
        index_dtype: dtype of the index states: 'model', 'float32', 'bfloat16' or 'float16'.
        scoring_method: relevance of a token: 'surprise', 'attention_based', 'variance_based',
            'hybrid' or 'gradient_based'. None: 'surprise', the only one that was measured to help,
            where eviction looks at relevance (reading then takes half as long again), else blocks
            are not scored.
        relevance_threshold: calibrated block relevance in [0, 1] below which a block is dropped
            first. None: none is dropped for its relevance.
        eviction_strategy: what leaves the last tier first: 'oldest', 'lru_relevance', 'lru' or
            'relevance'. From the tiers above it the least recently used blocks sink.
        cleanup_threshold: share of a full tier that stays when room is made, in (0, 1]. 1: exactly
            what is needed is sent away; less: more at once, and so less often.
        session_budget: what one session may hold over all tiers, a budget; None: its fair share of
            the store and what others leave free.
        max_sessions: sessions at once, 1 or more; None: any number.
        ttl: seconds after which a block is forgotten; None: never. A session may say otherwise.
        max_total_entries: tokens kept over all layers together, 1 or more; None: no such limit.
        device: where the memory lives. None: with each layer.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    target_layers: tuple[int, ...] | None = check.setting(None, check.layers)
    budget: int | str = check.setting(32768, budget_of, 1)
    working_budget: int | str = check.setting(0, budget_of, 0)
    long_term_budget: int | str = check.setting(0, budget_of, 0)
    long_term_store: str = check.setting("tokens", check.choice, LONG_TERM_STORES)
    long_term_folder: str | None = check.setting(None, check.text, "None or a name")
    recall_context: int = check.setting(64, check.integer, 0)
    block_size: int = check.setting(32, check.integer, 1, 512)
    store: str = check.setting("auto", check.choice, STORES)
    sinks: int = check.setting(4, check.integer, 0, 64)
    left_context: int = check.setting(128, check.integer, 0)
    index_dtype: str = check.setting("model", check.choice, INDEX_DTYPES)
    scoring_method: str | None = check.setting(None, check.choice, SCORING_METHODS)
    relevance_threshold: float | None = check.setting(None, check.real, 0.0, 1.0)
    eviction_strategy: str = check.setting("oldest", check.choice, EVICTION_STRATEGIES)
    cleanup_threshold: float = check.setting(1.0, check.share)
    session_budget: int | str | None = check.setting(None, budget_of, 1)
    max_sessions: int | None = check.setting(None, check.integer, 1)
    ttl: float | None = check.setting(None, lifetime)
    max_total_entries: int | None = check.setting(None, check.integer, 1)
    device: str | None = check.setting(None, check.text, "None or a name")

    def __post_init__(self) -> None:
        """Checks every field, and that a block fits into each budget."""
        super().__post_init__()
        # A budget in bytes is held against the model's blocks, at attach.
        for name in ("budget", "working_budget", "long_term_budget", "session_budget"):
            tokens = getattr(self, name)
            if isinstance(tokens, int) and 0 < tokens < self.block_size:
                raise check.refuse(
                    "block_size", self.block_size, f"at most the {name} of {tokens} tokens"
                )

    @property
    def scoring(self) -> str | None:
        """The scoring method in use; None where nothing looks at relevance."""
        # Scored reading takes half as long again, so nothing is scored that nobody looks at.
        looks = self.eviction_strategy in LOOK_AT_RELEVANCE or self.relevance_threshold is not None
        return self.scoring_method or ("surprise" if looks else None)

    def blocks(self, amount: int | str, block_bytes: int) -> int:
        """Whole blocks that a budget pays for.

        Args:
            amount: tokens, or a size.
            block_bytes: bytes of a block, for a size.
        """
        # Rounded down: a budget is never exceeded.
        if isinstance(amount, int):
            return amount // self.block_size
        return size(amount) // block_bytes


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
        raise check.refuse(field, value, "'auto', 'sampled', 'none' or a path")
    return value


@dataclass(frozen=True)
class RetrievalConfig(check.Checked):
    """How blocks are found.

    Attributes:
        strategy: 'maxsim' (synonym 'semantic_similarity'), 'contextual_relevance',
            'multi_criteria', 'hierarchical', 'task_specific', 'hybrid_ensemble', or one of
            `cmr.retrieval.strategies.registry.register_strategy`.
        index_layer: hidden state that is indexed and searched, 0 or more; None: what was measured,
            else at a quarter of the depth.
        blocks: passages recalled at once at most, 0..64; 0: nothing is ever recalled.
        neighbours: blocks read on each side of a passage, 0..8; with a tokenizer no further than
            the lines go on that it begins and ends with.
        query_tokens: newest tokens that ask, 1..4096, of an answer and of a text in which no
            question is known; a question in a known chat template asks as a whole.
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
            the library, and if nothing does, 'sampled': at the first search the model itself says,
            by random tokens, how its states are weighed; 'none' compares them as they are; else
            the path of a file of `cmr.calibrate`.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    strategy: str = check.setting("maxsim", _strategy)
    index_layer: int | None = check.setting(None, check.integer, 0)
    blocks: int = check.setting(3, check.integer, 0, 64)
    neighbours: int = check.setting(1, check.integer, 0, 8)
    query_tokens: int = check.setting(64, check.integer, 1, 4096)
    refresh: int = check.setting(16, check.integer, 1)
    gain: float = check.setting(0.2, check.real, 0.0, 1.0)
    ratio: float = check.setting(0.65, check.real, 0.0, 1.0)
    threshold: float = check.setting(0.8, check.real, 0.0)
    similarity_threshold: float | None = check.setting(None, check.real, -1.0, 1.0)
    context_heads: int | None = check.setting(None, check.integer, 1, 64)
    cache_size: int | None = check.setting(None, check.integer, 0)
    max_clusters: int | None = check.setting(None, check.integer, 1)
    criteria_weights: Mapping[str, float] | tuple[tuple[str, float], ...] | None = check.setting(
        None, check.weights, CRITERIA
    )
    calibration: str = check.setting("auto", _calibration)


@dataclass(frozen=True)
class ReweaveConfig(check.Checked):
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
        focus: 0..16, how much layers that read memory turn to what was asked in a message of many
            sentences. Those that found nothing and have no question mark weigh less, by the square
            of what asked over `focus` times their own length, where that is below 1. 0: nothing
            weighs less. 'auto': 0.35, and 0.7 for a model of fewer than 300 million parameters.
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

    method: str = check.setting("attention", check.choice, METHODS)
    memory_weight: float | str = check.setting("auto", check.auto_or_real, 0.0, 1.0)
    positions: str = check.setting("constant", check.choice, POSITIONS)
    sink_guard: int = check.setting(8, check.integer, 0, 64)
    focus: float | str = check.setting("auto", check.auto_or_real, 0.0, 16.0)
    layers: tuple[int, ...] | None = check.setting(None, check.layers)
    reconstruction_method: str | None = check.setting(None, check.choice, RECONSTRUCTION_METHODS)
    max_memory_tokens: int | None = check.setting(None, check.integer, 1)
    compression_ratio: float | None = check.setting(None, check.share)

    @property
    def bias(self) -> float | None:
        """logit(memory_weight): -inf at 0, +inf at 1; None where 'auto' decides at each recall."""
        if isinstance(self.memory_weight, str):
            return None
        # Their logits are infinite: memory off, and nothing but memory.
        if self.memory_weight in (0.0, 1.0):
            return math.copysign(math.inf, self.memory_weight - 0.5)
        return math.log(self.memory_weight) - math.log1p(-self.memory_weight)

    @property
    def fixed_gate(self) -> float:
        """The w of the methods that blend states: memory_weight, 0.1 where that is 'auto'."""
        return 0.1 if isinstance(self.memory_weight, str) else self.memory_weight


@dataclass(frozen=True)
class NextTokenConfig(check.Checked):
    """Whether and how stored tokens say what comes next, beside what the layers read.

    Attributes:
        knn: True: the distribution of the next token is p = (1 - g) p_model + g p_memory, where
            p_memory are the tokens that followed the recalled tokens most like the present one.
        knn_layers: layers whose keys and values are compared, among the target layers; None: those
            nearest to 60 %, 70 % and 80 % of the depth.
        knn_weight: the most that g can be, 0..1; 0 is off.
        knn_threshold: how well the best of them must fit for g to be above 0 where retrieval is
            certain, 0..1.5: 0 as well as an average recalled token, 1 exactly, and up to 0.5 more
            where the tokens before are the same. Where retrieval is uncertain 1.2 at least.
        knn_neighbours: stored tokens that say what comes next, 1..1024.
        knn_temperature: of the softmax over their cosines, above 0: the smaller, the more the best
            one decides.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    knn: bool = check.setting(False, check.flag)
    knn_layers: tuple[int, ...] | None = check.setting(None, check.layers)
    knn_weight: float = check.setting(0.9, check.real, 0.0, 1.0)
    knn_threshold: float = check.setting(0.7, check.real, 0.0, 1.5)
    knn_neighbours: int = check.setting(16, check.integer, 1, 1024)
    knn_temperature: float = check.setting(0.02, check.positive)

    @property
    def on(self) -> bool:
        """Whether it can change anything."""
        # With a weight of 0 nothing is compared, so that it costs nothing either.
        return self.knn and self.knn_weight > 0


@dataclass(frozen=True)
class OptimizationConfig(check.Checked):
    """Which helpers may steer a running memory; each True or False."""

    enable_adaptive_thresholds: bool = check.setting(False, check.flag)
    enable_batch_optimization: bool = check.setting(False, check.flag)
    enable_prefetching: bool = check.setting(False, check.flag)
    enable_background_optimization: bool = check.setting(False, check.flag)
