"""The settings of what is stored: how much of it, in which tiers, and what leaves first."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cmr.config import checks as check

STORES = ("auto", "kv", "states", "tokens")
INDEX_DTYPES = ("model", "float32", "bfloat16", "float16")
SCORING_METHODS = ("surprise", "attention_based", "variance_based", "hybrid", "gradient_based")
EVICTION_STRATEGIES = ("oldest", "lru_relevance", "lru", "relevance")
LONG_TERM_STORES = ("tokens", "kv")
# Powers of ten as on a disk's label, powers of two with an i.
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """Bytes of '512MiB', '1.5 GB' and the like; raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B)", text.strip().upper())
    if found is None or found[2] not in UNITS:
        raise ValueError(f"a size such as '512MiB' or '1.5GB' expected, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


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
    """`value` as seconds above 0."""
    return check.positive(name, value, "a number of seconds")


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
            through the model again, 0 or more.
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
        looks = "relevance" in self.eviction_strategy or self.relevance_threshold is not None
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
