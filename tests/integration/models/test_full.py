"""What steers a `FullCMRModel`, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr import CMRWarning, FullCMRModel, RetrievalContext
from tests.integration.models.test_passing import ALWAYS
from tests.integration.models.told import told
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import text

Made = Callable[..., Any]


@pytest.fixture
def full(llama: nn.Module, made: Made) -> FullCMRModel:
    """A model that has read a text of each of two sessions."""
    model: FullCMRModel = made(FullCMRModel, llama, {**ALWAYS, "target_layers": [1, 2, 3]})
    model(text(2, 60, seed=1), sessions=["anna", "ben"])
    return model


def test_the_specifications_settings(llama: nn.Module, made: Made, tiny: Any) -> None:
    """As its quick start has them; and those of its guide, nested."""
    import transformers

    config = transformers.GPT2Config(n_embd=48, n_head=4, n_layer=12, vocab_size=200)
    settings = {
        "target_layers": [4, 8, 12],
        "max_entries_per_layer": 1000,
        "scoring_method": "hybrid",
        "retrieval_strategy": "multi_criteria",
    }
    model = made(FullCMRModel, config, settings)
    out = model.forward(text(1, 20), return_memory_info=True)
    assert out["last_hidden_state"].shape == (1, 20, 256)
    assert out["memory_stats"]["layers_with_memory"] == [4, 8, 12]
    assert out["retrieval_stats"]["strategy"] == "multi_criteria"
    nested = {
        "memory_config": {
            "target_layers": [2, 4],
            "buffer_size": 1000,
            "relevance_threshold": 0.7,
            "scoring_method": "hybrid",
            "max_states_per_layer": 50,
            "device": "cpu",
        },
        "retrieval_config": {
            "strategy": "multi_criteria",
            "similarity_threshold": 0.7,
            "cache_size": 10,
            "criteria_weights": {
                "relevance": 0.4,
                "similarity": 0.3,
                "recency": 0.2,
                "diversity": 0.1,
            },
        },
        "reconstruction_config": {
            "method": "hierarchical",
            "integration_method": "attention",
            "memory_weight": 0.3,
            "max_memory_tokens": 128,
            "compression_ratio": 0.6,
        },
    }
    with pytest.warns(CMRWarning, match="memory_weight=0.3"):
        other = made(FullCMRModel, llama, nested)
    assert other.memory_buffer.limits.max_entries_per_layer == 50
    assert other.memory_buffer.limits.relevance_threshold == 0.7
    assert other.retriever.config.similarity_threshold == 0.7
    assert other.reconstruction_enabled and other.reconstructor.method == "hierarchical"
    assert other.integrator.memory_weight == 0.3
    assert other.memory.stats()["capacity_tokens"] <= 50
    before = hooks(tiny("gpt2"))
    with pytest.raises(cmr.ConfigError, match="did you mean 'target_layers'"):
        FullCMRModel(tiny("gpt2"), {"target_layer": [1]})
    assert hooks(tiny("gpt2")) == before


def test_defaults(llama: nn.Module, made: Made, tiny: Any) -> None:
    model = made(FullCMRModel, llama)
    assert model.scorer.scoring_method == "attention_based"
    assert model.memory_config.memory.scoring_method == "attention_based"
    assert model.target_layers == (model.memory.stats()["index_layer"],)
    assert model.memory.stats()["target_layers"] == [1, 2, 3, 4]
    integrated = made(cmr.IntegratedCMRModel, tiny("gpt2"))
    assert integrated.scorer.scoring_method == "hybrid"
    assert integrated.memory_config.window == 256  # what the decoder was made for
    assert integrated(text(1, 9)).last_hidden_state.shape == (1, 9, 64)


@pytest.mark.parametrize(
    "strategy",
    ["semantic_similarity", "contextual_relevance", "multi_criteria", "task_specific"],
)
def test_retrieval_strategy(strategy: str, full: FullCMRModel) -> None:
    full.set_retrieval_strategy(strategy)
    own = {"semantic_similarity": "maxsim"}.get(strategy, strategy)
    assert full.memory_config.retrieval.strategy == full.retriever.config.strategy == own
    searches = full.memory.stats()["searches"]
    out = full(text(1, 20), sessions="anna", return_memory_info=True)
    assert out.retrieval_stats["strategy"] == own
    assert out.retrieval_stats["searches"] > searches and out.retrieval_stats["recalled"][0]
    states = torch.randn(4, 64)
    full.retriever.retrieve_memories(RetrievalContext(0, 1, states))
    assert full.get_retrieval_stats()["buffer"]["by_strategy"] == {own: 1}


def test_refused_settings_change_nothing(full: FullCMRModel) -> None:
    before = full.memory_config, full.retriever.config, full.scorer.scoring_method
    cases: list[tuple[Callable[..., Any], Any, str]] = [
        (full.set_retrieval_strategy, "multi_criterion", "did you mean"),
        (full.set_reconstruction_method, "hierarchic", "did you mean 'hierarchical'"),
        (full.set_reconstruction_method, None, "method's name"),
        (full.update_relevance_threshold, 1.5, r"\[0, 1\]"),
        (full.update_scoring_method, "surprize", "did you mean 'surprise'"),
        (lambda window: full.memory.change(window=window), 32, "a setting that may change"),
    ]
    for method, value, match in cases:
        with pytest.raises(cmr.ConfigError, match=match):
            method(value)
        assert (full.memory_config, full.retriever.config, full.scorer.scoring_method) == before
    with pytest.raises(cmr.ConfigError, match="did you mean 'code'"):
        full(text(1, 5), task_type="coding")


def test_a_task_decides_the_search(full: FullCMRModel) -> None:
    """'summarising' takes up to eight passages; without it there are two at most."""
    ids = text(1, 20)
    full(text(1, 600, seed=4), sessions="anna")
    full.memory.change(gain=0.0, ratio=0.0)

    def blocks(**how: Any) -> int:
        full(ids, sessions="anna", **how)
        found = {t for p in full.memory.recalled[0] for t in range(p.start, p.end)}
        full.memory.forget(ids=max(b.id for b in full.memory.inspect("anna")))
        return len(found)

    assert blocks(task_type="summarising") > blocks()
    assert full.memory_config.retrieval.strategy == "maxsim"


def test_relevance_threshold(llama: nn.Module, made: Made) -> None:
    """What is below it leaves first, blocks and entries; without it the oldest do."""
    left: dict[float | None, tuple[float, float]] = {}
    for threshold in (None, 0.6):
        settings = {**ALWAYS, "target_layers": [2], "budget": 256, "block_size": 8}
        model = made(FullCMRModel, llama, {**settings, "eviction_strategy": "oldest"})
        model.update_relevance_threshold(threshold)
        for seed in range(8):
            model(text(1, 48, seed=seed))
        entries = [e.relevance_score for e in model.memory_buffer.retrieve_by_layer(2)]
        blocks = [e.relevance_score for e in model.memory.entries()]
        left[threshold] = (sum(entries) / len(entries), sum(blocks) / len(blocks))
        model.cleanup_hooks()
    assert all(
        with_it > without + 0.05 for with_it, without in zip(left[0.6], left[None], strict=True)
    )


def test_scoring_method(full: FullCMRModel) -> None:
    full.update_scoring_method("surprise")
    full(text(1, 40, seed=5), sessions="anna")
    assert full.scorer.get_scoring_stats()["tokens"] == 3 * 40
    assert full.memory.stats()["scoring"]["method"] == "surprise"
    assert full.memory.stats()["scoring"]["blocks"] == {"surprise": 2}
    assert full.memory_config.memory.scoring_method == "surprise"
    full.memory.read(text(1, 40, seed=6))
    assert full.memory.stats()["scoring"]["blocks"] == {"surprise": 4}


def test_reconstruction(full: FullCMRModel) -> None:
    """Fewer tokens are read where it is on; all of them where it is off, to the bit."""
    ids = text(1, 20)

    def read(session: str = "anna") -> tuple[int, torch.Tensor]:
        with full.memory.session(session):
            logits = full.model(ids).logits
        return sum(passage.read for passage in full.memory.recalled[0]), logits

    everything, plain = read()
    assert everything == 60 and not full.reconstruction_enabled
    full.enable_reconstruction()
    few, reduced = read()
    assert few == 36 and not torch.equal(reduced, plain)
    full.set_reconstruction_method("weighted_sum")
    assert full.memory_config.reweave.reconstruction_method == "weighted_sum"
    assert full.reconstructor.method == "weighted_sum"
    assert not torch.equal(read()[1], reduced)
    full.disable_reconstruction()
    assert read()[0] == 60 and torch.equal(read()[1], plain)
    full.set_reconstruction_method("attention")
    assert torch.equal(read()[1], plain)
    full.enable_reconstruction()
    assert full.memory_config.reweave.reconstruction_method == "attention"


def test_entries_become_states_to_read(full: FullCMRModel) -> None:
    number = full.memory._core.table.require("anna")
    out = full.model(text(1, 60, seed=1), output_hidden_states=True)
    states = out.hidden_states[2]
    context = RetrievalContext(number, 2, states, retrieval_budget=10)
    found = full.reconstruct(context)
    assert len(found) == 6 and found.states.shape[1] == 64
    assert float(found.similarity.max()) > 0.99
    assert full.integrator(states, found).shape == states.shape
    assert not torch.equal(full.integrator(states, found), states)
    assert len(full.blender.blend([found, found])) <= 6
    nobody = RetrievalContext(99, 2, states)
    assert len(full.reconstruct(nobody)) == 0


def test_looking(full: FullCMRModel) -> None:
    stats, usage = full.get_memory_stats(), full.get_memory_usage()
    assert stats["total_captured_states"] == 2 * 60 * 3 == stats["buffer"]["total_entries"]
    assert stats["memory"]["tokens"] == stats["tokens"] == 120 and stats["enabled"]
    assert stats["scoring"]["method"] == "attention_based"
    parameters = sum(p.numel() * 4 for p in full.model.parameters())
    assert usage["model_bytes"] >= parameters
    assert usage["memory_bytes"] == full.memory.nbytes
    assert usage["total_bytes"] == sum(
        usage[name] for name in ("model_bytes", "memory_bytes", "buffer_bytes")
    )
    assert usage["buffer_utilisation"] == 360 / 5000
    ben = full.get_memory_for_sequence("ben")
    number = full.memory._core.table.require("ben")
    assert {entry.sequence_id for entry in ben} == {number} and len(ben) == 180
    assert len(full.get_memory_for_sequence(number)) == 180
    assert full.get_memory_for_sequence()[0].sequence_id == full.current_sequence_id
    blocks = full.get_memory_for_sequence("ben", blocks=True)
    assert [token for block in blocks for token in block.token_ids] == told(full.memory, "ben")
    for unknown in ("carl", 99):
        with pytest.raises(cmr.UnknownSessionError):
            full.get_memory_for_sequence(unknown)


def test_top_memories(full: FullCMRModel) -> None:
    top = full.get_top_memories(7)
    every = [e.relevance_score for e in full.memory_buffer.retrieve_recent(1000)]
    assert [entry.relevance_score for entry in top] == sorted(every, reverse=True)[:7]
    anna = full.get_top_memories(5, layer_idx=2, sequence="anna")
    assert {(entry.layer_idx, entry.sequence_id) for entry in anna} == {(2, 0)}
    blocks = full.get_top_memories(3, blocks=True)
    assert [b.relevance_score for b in blocks] == sorted(
        (b.relevance_score for b in full.memory.entries()), reverse=True
    )[:3]
    assert {b.session for b in full.get_top_memories(9, sequence="ben", blocks=True)} == {"ben"}
    with pytest.raises(ValueError, match="layer_idx"):
        full.get_top_memories(3, layer_idx=2, blocks=True)


def test_clearing(full: FullCMRModel) -> None:
    assert full.clear_memory("anna") == 2 + 180
    assert full.memory.sessions == ["ben"] and len(full.memory_buffer) == 180
    assert full.clear_memory() == 2 + 180
    assert full.memory.tokens == len(full.memory_buffer) == 0
    with pytest.raises(cmr.UnknownSessionError):
        full.clear_memory("ben")
    full(text(1, 10))
    assert full.memory.recalled == [[]]


def test_tidying_up(full: FullCMRModel) -> None:
    again = text(2, 60, seed=1)
    with full.memory.retrieval(blocks=0):  # the same states, as nothing is recalled
        full(again, sessions=["anna", "ben"])
    assert full.memory.tokens == 240 and len(full.memory_buffer) == 720
    report = full.optimize_memory()
    assert report["merged"] == 4 and report["merged_entries"] == 360
    assert full.memory.tokens == 120 and len(full.memory_buffer) == 360
    assert full.optimize_memory()["merged_entries"] == 0


def test_cleanup(llama: nn.Module, made: Made) -> None:
    before, ids = (hooks(llama), attributes(llama)), text(1, 20)
    want = llama(ids).logits
    model = made(FullCMRModel, llama, ALWAYS)
    model(ids)
    model.cleanup()
    model.cleanup()
    assert (hooks(llama), attributes(llama)) == before
    assert torch.equal(model(ids).logits, want)
    assert model.memory.tokens == len(model.memory_buffer) == 0
    assert not any(bool(part.any()) for part in model.memory._core.ring.parts[0].values())
