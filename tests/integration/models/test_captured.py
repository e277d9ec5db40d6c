"""States that become memory are entries of the buffer, with their relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cmr import ConfigError, FullCMRModel, IntegratedCMRModel, LayeredMemoryBuffer
from cmr.config import SCORING_METHODS
from cmr.kernels.score import surprise
from cmr.memory.token_scores import token_scores
from tests.integration.models.test_passing import ALWAYS
from tests.integration.models.told import told
from tests.integration.tiny import build, text

Made = Callable[..., Any]


def test_entries_are_the_models_own_states(decoder: nn.Module, made: Made) -> None:
    """Also of what leaves the last block: captured, never injected."""
    depth, ids = decoder.config.num_hidden_layers, text(2, 30)
    want = decoder(ids, output_hidden_states=True).hidden_states
    model = made(FullCMRModel, decoder, {**ALWAYS, "target_layers": [1, depth]})
    model(ids)
    assert model.target_layers == (1, depth)
    assert depth not in model.memory.stats()["target_layers"]
    for layer in (1, depth):
        for row in range(2):
            entries = [
                entry
                for entry in model.memory_buffer.retrieve_by_sequence(row)
                if entry.layer_idx == layer
            ]
            assert [entry.token_ids[0] for entry in entries] == ids[row].tolist()
            states = torch.stack([entry.hidden_state for entry in entries])
            assert torch.equal(states, want[layer][row])


def test_what_leaves_while_generating_is_captured_too(llama: nn.Module, made: Made) -> None:
    model = made(FullCMRModel, llama, {**ALWAYS, "target_layers": [3]})
    out = model.generate(text(1, 90), max_new_tokens=50, do_sample=False)
    entries = model.memory_buffer.retrieve_by_layer(3)
    assert [entry.token_ids[0] for entry in entries] == out[0, :-1].tolist()
    assert [entry.position_idx for entry in entries] == list(range(139))


def test_a_text_longer_than_the_window_is_scored_as_a_whole(llama: nn.Module, made: Made) -> None:
    settings = {**ALWAYS, "target_layers": [2], "scoring_method": "surprise"}
    model, ids = made(FullCMRModel, llama, settings), text(1, 150)
    assert torch.equal(model(ids).logits, model(ids, use_memory=False).logits)
    assert told(model.memory, "0") == ids[0].tolist()
    assert model.memory.stats()["scoring"]["blocks"] == {"surprise": 5}
    assert model.scorer.get_scoring_stats()["layers"][2].keys() == {"surprise"}


def test_the_buffer_size_holds(llama: nn.Module, made: Made) -> None:
    model = made(IntegratedCMRModel, llama, {"target_layers": [2, 4], "buffer_size": 3})
    for seed in range(3):
        stats = model(text(1, 40, seed=seed)).memory_stats
        assert stats["total_captured_states"] <= 6 and stats["tokens"] <= 3
    newest = {entry.token_ids[0] for entry in model.memory_buffer.retrieve_recent(6)}
    assert newest <= set(text(1, 40, seed=2)[0].tolist())


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_every_scoring_method(method: str, llama: nn.Module, made: Made) -> None:
    """The order of relevance is that of the raw scores, as they can be computed by hand."""
    ids = text(1, 40)
    want = llama(ids, output_hidden_states=True)
    raw = raw_scores(llama, ids, want)
    settings = {**ALWAYS, "target_layers": [2], "eviction_strategy": "relevance"}
    model = made(FullCMRModel, llama, {**settings, "scoring_method": method})
    assert torch.equal(model(ids).logits, want.logits)
    found = model.memory_buffer.retrieve_by_layer(2)
    relevance = torch.tensor([entry.relevance_score for entry in found])
    assert model.scorer.get_scoring_stats()["tokens"] == 40
    assert model.memory.stats()["scoring"]["blocks"] == {method: 2}
    if method == "hybrid":
        assert len(relevance.unique()) > 20
    else:
        some = slice(1, 39)  # the first token has no prediction, the last one no reader
        assert torch.equal(relevance[some].argsort(), raw[method][some].argsort())


def raw_scores(model: nn.Module, ids: torch.Tensor, out: Any) -> dict[str, torch.Tensor]:
    """Scores at layer 2 by method, `[tokens]`, by hand."""
    mask, states = torch.ones(1, 40, dtype=torch.bool), out.hidden_states[2]
    return {
        "surprise": surprise(out.logits, ids)[0],
        "variance_based": token_scores("variance_based", states, mask)[0],
        "gradient_based": gradient(model, ids),
        "attention_based": attention(model, ids),
    }


def gradient(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """|g·h| of each token at layer 2, `[tokens]`."""
    with torch.enable_grad():
        out = model(ids, output_hidden_states=True, labels=ids)
        (found,) = torch.autograd.grad(out.loss, [out.hidden_states[2]])
    return (found * out.hidden_states[2]).sum(-1)[0].abs().detach()


def attention(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Attention that each token receives at block 2 from later ones, over its fair share."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    weights = model(ids, output_attentions=True).attentions[2]
    model.set_attn_implementation(own)
    states, mask = torch.zeros(1, 40, 64), torch.ones(1, 40, dtype=torch.bool)
    mask[0, 0] = False
    return token_scores("attention_based", states, mask, attention_weights=weights)[0]


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
def test_gradients_in_every_mode(mode: str, llama: nn.Module, made: Made) -> None:
    ids = text(1, 20)
    plain = llama(ids).logits
    model = made(FullCMRModel, llama, {**ALWAYS, "scoring_method": "gradient_based"})
    (layer,) = model.target_layers
    with getattr(torch, mode)():
        out = model(ids.clone(), labels=ids)
    assert torch.equal(out.logits, plain)
    assert out.loss.requires_grad == out.logits.requires_grad == (mode == "enable_grad")
    relevance = {entry.relevance_score for entry in model.memory_buffer.retrieve_by_layer(layer)}
    assert len(relevance) > 10
    assert "loss" not in model(ids)


def test_labels_decide_the_gradients(llama: nn.Module, made: Made) -> None:
    """With the loss of the last token alone, other tokens matter than with that of all."""
    settings = {**ALWAYS, "scoring_method": "gradient_based", "target_layers": [2]}
    model, ids = made(FullCMRModel, llama, settings), text(1, 20)
    orders = []
    for labels in (None, ids.masked_fill(torch.arange(20) < 19, -100)):
        model.clear_memory()
        model.update_scoring_method("gradient_based")
        model(ids, labels=labels) if labels is not None else model(ids)
        entries = model.memory_buffer.retrieve_by_layer(2)
        orders.append([entry.relevance_score for entry in entries])
    assert orders[0] != orders[1]
    with pytest.raises(ValueError, match="needs a loss"):
        model(inputs_embeds=llama.get_input_embeddings()(ids))


def test_copies_never_outlive_what_they_were_made_of(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, llama, {**ALWAYS, "target_layers": [2]}), text(1, 20)

    def held(name: str) -> int:
        return len(model.get_memory_for_sequence(name))

    with model.memory.session("guest", create=True, ephemeral=True):
        model(ids)
    with model.memory.session("brief", create=True, ttl=60):
        model(ids)
    assert held("guest") == held("brief") == 0 and model.memory.tokens == 40
    for name in ("anna", "ben"):
        model(ids, sessions=name)
    assert held("anna") == held("ben") == 20
    model.memory.forget("anna")
    assert held("ben") == 20 and len(model.memory_buffer) == 20
    model.memory.forget("ben", text=ids[0, :3].tolist())
    assert held("ben") == 0


def test_what_must_not_be_stored_is_no_entry(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, llama, {**ALWAYS, "target_layers": [2]}), text(1, 20)
    model.memory._core.writer._keep = lambda tokens: tokens != ids[0, 7]
    model(ids)
    entries = model.memory_buffer.retrieve_by_layer(2)
    assert [e.position_idx for e in entries] == [i for i in range(20) if ids[0, i] != ids[0, 7]]
    assert [e.token_ids[0] for e in entries] == [t for t in ids[0].tolist() if t != ids[0, 7]]


def test_a_buffer_and_a_scorer_of_your_own(llama: nn.Module, made: Made) -> None:
    def evens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.arange(states.shape[1]) % 2 == 0).float().expand(mask.shape)

    buffer, ids = LayeredMemoryBuffer(max_entries_per_layer=50), text(1, 20)
    own = {"memory_buffer": buffer, "scorer": evens}
    model = made(FullCMRModel, llama, {**ALWAYS, "target_layers": [2]}, **own)
    model(ids)
    assert [e.relevance_score for e in buffer.retrieve_by_layer(2)] == [1.0, 0.0] * 10
    assert model.memory_buffer is model.retriever.memory_buffer is buffer
    assert model.get_memory_stats()["scoring"] is None
    model.scorer = model._feeder.scorer = lambda states, mask: mask * 2.0
    with pytest.raises(ValueError, match=r"relevance in \[0, 1\]"):
        model(ids)
    assert model.memory.tokens == len(buffer) == 20
    model.update_scoring_method("variance_based")
    assert len(model.get_top_memories(5)) == 5 and model(ids).logits.shape == (1, 20, 200)
    for name, bad in (("memory_buffer", {}), ("scorer", "hybrid")):
        with pytest.raises(ConfigError, match=name):
            FullCMRModel(build("gpt2"), None, **{name: bad})
