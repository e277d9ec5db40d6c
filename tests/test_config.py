"""Settings: ranges, dictionaries with synonyms, overrides, what is not available yet."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmr.config import CMRConfig, MemoryConfig, RetrievalConfig, ReweaveConfig
from cmr.config.checks import nearest
from cmr.errors import (
    AttachError,
    CMRError,
    ConfigError,
    ModelMismatchError,
    UnknownSessionError,
    UnsupportedModelError,
)

WRONG = [
    ("window", 15),
    ("window", 512.0),
    ("budget", 0),
    ("budget", True),
    ("block_size", 513),
    ("store", "disk"),
    ("sinks", -1),
    ("left_context", -1),
    ("index_dtype", "int8"),
    ("target_layers", []),
    ("target_layers", [3, 3]),
    ("target_layers", [-1]),
    ("target_layers", "4"),
    ("scoring_method", "guess"),
    ("relevance_threshold", 1.5),
    ("eviction_strategy", "newest"),
    ("max_total_entries", 0),
    ("strategy", "bm25"),
    ("index_layer", -1),
    ("blocks", 65),
    ("neighbours", 9),
    ("query_tokens", 0),
    ("refresh", 0),
    ("ratio", 1.1),
    ("threshold", -0.1),
    ("threshold", math.nan),
    ("similarity_threshold", 2),
    ("context_heads", 0),
    ("cache_size", -1),
    ("max_clusters", 0),
    ("criteria_weights", {"relevance": -1}),
    ("criteria_weights", {"novelty": 1}),
    ("criteria_weights", {"relevance": 0}),
    ("method", "mlp"),
    ("memory_weight", 1.01),
    ("memory_weight", "strong"),
    ("memory_weight", math.inf),
    ("positions", "relative"),
    ("sink_guard", 65),
    ("layers", [1.5]),
    ("max_memory_tokens", 0),
    ("compression_ratio", 0.0),
    ("reconstruction_method", "hierarchic"),
    ("method", "gate"),
    ("enable_prefetching", 1),
    ("knn", 1),
    ("knn_layers", []),
    ("knn_layers", [2, 2]),
    ("knn_weight", 1.1),
    ("knn_threshold", -0.1),
    ("knn_neighbours", 0),
    ("knn_temperature", 0.0),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda item: repr(item))
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="expected") as caught:
        CMRConfig().with_overrides(**{name: value})
    assert name in str(caught.value)
    bad = next(iter(value.items()))[0] if isinstance(value, dict) else value
    assert repr(bad) in str(caught.value) or str(bad) in str(caught.value)


def test_the_documented_dictionaries_parse() -> None:
    config = CMRConfig.from_dict(
        {
            "memory_config": {
                "target_layers": [6, 4, 2],
                "intervention_layers": [4, 6],
                "max_entries_per_layer": 1000,
                "max_total_entries": 5000,
                "scoring_method": "hybrid",
                "relevance_threshold": 0.5,
                "eviction_strategy": "lru_relevance",
                "retrieval_strategy": "multi_criteria",
            },
            "retrieval_config": {
                "strategy": "multi_criteria",
                "similarity_threshold": 0.7,
                "context_heads": 8,
                "cache_size": 1000,
                "max_clusters": 32,
                "criteria_weights": {
                    "relevance": 0.4,
                    "similarity": 0.3,
                    "recency": 0.2,
                    "diversity": 0.1,
                },
            },
            "reconstruction_config": {
                "method": "hierarchical",
                "integration_method": "weighted_sum",
                "memory_weight": 0.3,
                "max_memory_tokens": 128,
                "compression_ratio": 0.6,
            },
            "optimization_config": {
                "enable_adaptive_thresholds": True,
                "enable_batch_optimization": True,
                "enable_prefetching": True,
                "enable_background_optimization": True,
            },
        }
    )
    assert config.memory.target_layers == (2, 4, 6)
    assert config.memory.budget == 1000
    assert config.reweave.layers == (4, 6)
    assert config.reweave.method == "weighted_sum"
    assert config.reweave.fixed_gate == 0.3
    assert config.reweave.reconstruction_method == "hierarchical"
    assert (config.reweave.max_memory_tokens, config.reweave.compression_ratio) == (128, 0.6)
    assert config.retrieval.strategy == "multi_criteria"
    assert dict(config.retrieval.criteria_weights)["recency"] == 0.2
    named = "\n".join(config.unavailable())
    for asked in (
        "enable_adaptive_thresholds",
        "enable_batch_optimization",
        "enable_prefetching",
        "enable_background_optimization",
    ):
        assert asked in named
    assert "reweave" not in named
    assert "retrieval" not in named


def test_flat_dictionary_and_synonyms() -> None:
    flat = CMRConfig.from_dict(
        {
            "target_layers": [4, 8, 12],
            "buffer_size": 64,
            "retrieval_strategy": "semantic_similarity",
        }
    )
    assert flat.memory.budget == 64
    assert flat.retrieval.strategy == "maxsim"
    assert flat.unavailable() == []


def test_the_defaults_are_all_available() -> None:
    assert CMRConfig().unavailable() == []


def test_of_several_upper_bounds_the_least_holds() -> None:
    config = CMRConfig.from_dict({"buffer_size": 1000, "max_states_per_layer": 50})
    assert config.memory.budget == 50


def test_a_tiny_budget_makes_tiny_blocks_and_is_never_exceeded() -> None:
    memory = CMRConfig.from_dict({"target_layers": [2, 4], "buffer_size": 3}).memory
    assert memory.blocks(memory.budget, 1) * memory.block_size == 3
    with pytest.raises(ConfigError, match="block_size: at most the budget of 3"):
        CMRConfig.from_dict({"buffer_size": 3, "block_size": 4})


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"budgett": 3}, "did you mean 'budget'"),
        (
            {"memory_config": {"bufer_size": 3}},
            "memory_config.bufer_size: did you mean 'buffer_size'",
        ),
        ({"retrieval_confg": {}}, "did you mean 'retrieval_config'"),
        ({"zzzz": 1}, "zzzz: help(cmr.CMRConfig) lists them"),
    ],
)
def test_an_unknown_key_names_the_nearest(settings: dict, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        CMRConfig.from_dict(settings)
    assert hint in str(caught.value)


def test_one_field_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"retrieval_strategy='maxsim'.*strategy='hierarchical'"):
        CMRConfig.from_dict({"retrieval_strategy": "maxsim", "strategy": "hierarchical"})


def test_settings_that_are_no_dictionary_are_refused() -> None:
    with pytest.raises(ConfigError, match="a dict expected, got list"):
        CMRConfig.from_dict([("window", 512)])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="memory_config: a dict of settings expected, got 3"):
        CMRConfig.from_dict({"memory_config": 3})


def test_overrides_keep_the_rest_and_the_original() -> None:
    base = CMRConfig(window=256, retrieval=RetrievalConfig(blocks=4))
    changed = base.with_overrides(budget=4096, memory_weight=0.5, window=128)
    assert (changed.window, changed.memory.budget, changed.retrieval.blocks) == (128, 4096, 4)
    assert changed.reweave.bias == 0.0
    assert base == CMRConfig(window=256, retrieval=RetrievalConfig(blocks=4))
    whole = base.with_overrides(memory=MemoryConfig(budget=64), retrieval={"blocks": 1})
    assert (whole.memory.budget, whole.retrieval.blocks) == (64, 1)


def test_window_must_exceed_sinks_and_guard() -> None:
    with pytest.raises(ConfigError, match="window: more than the 32 tokens"):
        CMRConfig().with_overrides(window=32, sinks=32)


@given(st.floats(0.0, 1.0))
def test_bias_is_the_logit_of_the_weight(weight: float) -> None:
    bias = ReweaveConfig(memory_weight=weight).bias
    assert bias is not None
    back = 1.0 / (1.0 + math.exp(-bias)) if bias > -700 else 0.0
    assert back == pytest.approx(weight, abs=1e-12)


def test_auto_weight_leaves_the_bias_to_retrieval() -> None:
    assert ReweaveConfig().bias is None
    assert ReweaveConfig(method="weighted_sum").fixed_gate == 0.1


@given(
    st.builds(
        dict,
        window=st.integers(128, 4096),
        target_layers=st.none() | st.sets(st.integers(0, 80), min_size=1).map(sorted),
        budget=st.integers(1, 10**6),
        blocks=st.integers(1, 64),
        memory_weight=st.just("auto") | st.floats(0, 1),
        criteria_weights=st.none() | st.just({"recency": 1.0, "relevance": 0.5}),
        knn=st.booleans(),
        knn_layers=st.none() | st.sets(st.integers(0, 80), min_size=1).map(sorted),
        knn_weight=st.floats(0, 1),
    )
)
def test_a_dictionary_of_settings_round_trips_through_json(flat: dict) -> None:
    config = CMRConfig.from_dict(flat)
    assert CMRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(CMRConfig.from_dict(config.to_dict()))


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigError, ValueError),
        (UnsupportedModelError, TypeError),
        (UnknownSessionError, KeyError),
        (ModelMismatchError, ValueError),
        (AttachError, RuntimeError),
    ],
)
def test_errors_are_ours_and_the_built_in_kind_and_read_plainly(kind: type, builtin: type) -> None:
    error = kind("session 'anna' expected")
    assert isinstance(error, CMRError)
    assert isinstance(error, builtin)
    assert str(error) == "session 'anna' expected"


def test_a_name_is_suggested_only_where_it_is_near() -> None:
    known = ("knn", "window", "code", "first")
    for said, meant in (("windw", "window"), ("coding", "code"), ("frist", "first")):
        assert nearest(said, known) == f"did you mean {meant!r}?"
    assert nearest("unknown", known) == "known: code, first, knn, window"
    assert nearest("x", ()) == "known: none"
    many = [f"setting{n}" for n in range(20)]
    assert nearest("x", many, "help lists them") == "help lists them"


def test_no_message_says_twice_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        CMRConfig().with_overrides(store="disk")
    assert str(caught.value) == (
        "store: one of 'auto', 'kv', 'states', 'tokens' expected, got 'disk'"
    )
    with pytest.raises(ConfigError) as caught:
        CMRConfig().with_overrides(store="state")
    assert str(caught.value).endswith("got 'state'; did you mean 'states'?")
    with pytest.raises(ConfigError) as caught:
        CMRConfig().with_overrides(unknown=3)
    assert str(caught.value) == "unknown setting unknown: help(cmr.CMRConfig) lists them"
