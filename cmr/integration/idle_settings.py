"""Settings that were given and change nothing under the others that were."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import fields
from typing import Any

from cmr._warning import warn
from cmr.config import STATE_METHODS, STRATEGIES, NextTokenConfig
from cmr.integration.core import Core

STRATEGIES_OF = {
    "context_heads": ("contextual_relevance", "hybrid_ensemble", "task_specific"),
    "criteria_weights": ("multi_criteria", "task_specific"),
    "max_clusters": ("hierarchical", "task_specific"),
}
"""Settings of the search, and the strategies that look at them."""


def caution_idle(core: Core, elsewhere: Container[str] = ()) -> None:
    """Warn once of all settings that differ from their defaults and change nothing.

    `elsewhere`: names of those that something beside the memory looks at.
    """
    idle = [said for name, said in _idle(core) if name not in elsewhere]
    if idle:
        warn("settings without effect as they are: " + "; ".join(idle))


def _idle(core: Core) -> Iterator[tuple[str, str]]:
    """Name of each, and what is said of it."""
    config, layout = core.config, core.layout
    memory, retrieval, reweave = config.memory, config.retrieval, config.reweave
    for name, strategies in STRATEGIES_OF.items():
        # What a strategy looks at that somebody has added is not known.
        known = retrieval.strategy in STRATEGIES
        if _given(retrieval, name) and known and retrieval.strategy not in strategies:
            wanted = " or ".join(repr(strategy) for strategy in strategies)
            yield name, _said(retrieval, name, f"strategy {wanted}", retrieval.strategy)
    again = reweave.reconstruction_method == "recompute"
    limited = reweave.max_memory_tokens is not None or reweave.compression_ratio is not None
    blends = reweave.method in STATE_METHODS
    if _given(reweave, "reconstruction_method") and not (again or limited or blends):
        wanted = "max_memory_tokens or compression_ratio"
        yield "reconstruction_method", _said(reweave, "reconstruction_method", wanted, None)
    asks = core.template is not None and retrieval.strategy == "maxsim" and not blends
    if _given(reweave, "focus") and reweave.focus and not asks:
        wanted = "a tokenizer with a chat template, strategy 'maxsim' and method 'attention'"
        yield "focus", f"focus={reweave.focus!r} needs {wanted}"
    low = layout.lower.long_term
    bare = layout.store == "tokens" or (low and not layout.lower.long_term_states)
    if _given(memory, "recall_context") and not (bare or again):
        wanted = "store='tokens', a long-term tier of tokens or reconstruction_method='recompute'"
        yield "recall_context", _said(memory, "recall_context", wanted, None)
    for name in ("long_term_store", "long_term_folder"):
        if _given(memory, name) and not low:
            yield name, _said(memory, name, "long_term_budget above 0", memory.long_term_budget)
    if not config.next_token.knn:
        for field in fields(NextTokenConfig):
            # A weight of 0 is off, as is said elsewhere.
            off = field.name == "knn_weight" and not config.next_token.knn_weight
            if _given(config.next_token, field.name) and not off:
                yield field.name, _said(config.next_token, field.name, "knn=True", False)
    if reweave.method == "weighted_sum" and reweave.memory_weight != 0:
        said = "integration_method='weighted_sum' blends states, and recalled nothing where it "
        yield "method", said + "was measured; 'attention' (the default) does"


def _given(part: Any, name: str) -> bool:
    """Whether a setting differs from its default."""
    return bool(getattr(part, name) != getattr(type(part)(), name))


def _said(part: Any, name: str, wanted: str, got: object) -> str:
    has = "none" if got is None else repr(got)
    return f"{name}={getattr(part, name)!r} needs {wanted}, got {has}"
