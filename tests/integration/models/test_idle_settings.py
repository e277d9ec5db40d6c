"""What is given and changes nothing is said once, and nothing else is."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import cmr

IDLE: list[tuple[dict[str, Any], str]] = [
    ({"context_heads": 4}, "context_heads=4 needs strategy 'contextual_relevance'"),
    ({"max_clusters": 8}, "max_clusters=8 needs strategy 'hierarchical'"),
    ({"criteria_weights": {"recency": 1.0}}, "needs strategy 'multi_criteria'"),
    ({"reconstruction_method": "hierarchical"}, "needs max_memory_tokens or compression_ratio"),
    ({"focus": 1.0}, "focus=1.0 needs a tokenizer with a chat template"),
    ({"recall_context": 32}, "recall_context=32 needs store='tokens'"),
    ({"long_term_store": "kv"}, "long_term_store='kv' needs long_term_budget above 0, got 0"),
    ({"long_term_folder": "."}, "long_term_folder='.' needs long_term_budget"),
    ({"knn_weight": 0.5}, "knn_weight=0.5 needs knn=True, got False"),
    ({"knn_neighbours": 4}, "knn_neighbours=4 needs knn=True"),
    ({"integration_method": "weighted_sum"}, "recalled nothing where it was measured"),
]
USED: list[dict[str, Any]] = [
    {},
    {"context_heads": 4, "strategy": "contextual_relevance"},
    {"context_heads": 4, "strategy": "task_specific"},
    {"criteria_weights": {"recency": 1.0}, "strategy": "multi_criteria"},
    {"reconstruction_method": "hierarchical", "max_memory_tokens": 64},
    {"reconstruction_method": "recompute"},
    {"recall_context": 32, "store": "tokens"},
    {"recall_context": 32, "long_term_budget": 1024},
    {"recall_context": 32, "reconstruction_method": "recompute"},
    {"long_term_store": "kv", "long_term_budget": 1024},
    {"knn_weight": 0.5, "knn": True},
    {"knn_weight": 0.0},
    {"focus": 0.0},
    # As they are by default, whoever says so.
    {"knn_weight": 0.9, "recall_context": 64, "long_term_store": "tokens", "max_clusters": None},
]


@pytest.mark.parametrize(("settings", "words"), IDLE, ids=lambda value: str(value)[:30])
def test_a_setting_without_effect_is_said_once(llama, settings, words: str) -> None:
    with pytest.warns(cmr.CMRWarning) as told:
        cmr.attach(llama, window=64, budget=1024, **settings).detach()
    (one,) = told
    assert "settings without effect" in str(one.message) and words in str(one.message)


@pytest.mark.parametrize("settings", USED, ids=str)
def test_what_has_an_effect_or_was_left_is_not(llama, settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", cmr.CMRWarning)
        cmr.attach(llama, window=64, budget=1024, **settings).detach()


def test_several_are_said_in_one_warning(llama) -> None:
    with pytest.warns(cmr.CMRWarning, match="context_heads=4 .*; max_clusters=8 .*; knn_weight"):
        cmr.attach(llama, {"context_heads": 4, "max_clusters": 8, "knn_weight": 0.4}).detach()


def test_a_model_class_has_parts_that_look_at_more(llama) -> None:
    settings = {"context_heads": 4, "max_clusters": 8, "window": 64, "target_layers": [2]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", cmr.CMRWarning)
        cmr.FullCMRModel(llama, settings).cleanup_hooks()
    with pytest.warns(cmr.CMRWarning, match="context_heads=4"):
        cmr.IntegratedCMRModel(llama, settings).cleanup_hooks()


def test_a_strategy_of_somebodys_own_may_look_at_anything(llama) -> None:
    cmr.register_strategy("own_idle", lambda parts: Own())
    with warnings.catch_warnings():
        warnings.simplefilter("error", cmr.CMRWarning)
        cmr.attach(llama, window=64, strategy="own_idle", context_heads=4).detach()


class Own:
    """A strategy that is never asked."""

    def score(self, ask: Any, store: Any) -> Any:
        raise AssertionError("nothing is searched here")
