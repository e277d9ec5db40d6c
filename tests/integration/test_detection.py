"""A decoder without a row is guessed, proves itself on a short text, or is refused; see why."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import cmr
from cmr.errors import UnsupportedModelError
from cmr.integration import detection
from cmr.integration.decoder.families import FAMILIES
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import (
    OTHER_LAYERS,
    OTHERS,
    READS_ALL,
    SHAPE,
    TOKENS,
    greedy,
    text,
    unequal,
)
from tests.kernels.helpers.compare import assert_close

READS = {**READS_ALL, "target_layers": OTHER_LAYERS}
ACCEPTED: dict[str, dict[str, Any]] = {
    "Olmo": {},
    "Granite": {
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.3,
        "embedding_multiplier": 3.0,
    },
    "Starcoder2": {},
    "StableLm": {"use_qkv_bias": True},
    "Phi": {"qk_layernorm": True},
    "Gemma": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "Exaone4": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 512},
}
"""Rotated in full and in part, biased, normed, without positions, and with absolute ones."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Cohere": ({}, "its keys at layer 0 .* differ by .* of the largest, at most 0.001"),
    "Bloom": ({"n_layer": 4, "n_head": 4}, "cannot be told the positions"),
    "Mamba": ({}, r"no module of a block \(norm, mixer\) projects"),
    "DeepseekV3": (
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
        },
        "projects queries, keys and values in a known way",
    ),
    "XGLM": (
        {"d_model": 64, "attention_heads": 4, "num_layers": 4, "ffn_dim": 64},
        "layer 0 does not ask transformers' AttentionInterface",
    ),
    "GPTJ": (
        {"n_layer": 4, "n_head": 4, "n_embd": 64, "rotary_dim": 8},
        "its keys at layer 0",
    ),
}


def build(name: str, own: dict[str, Any]) -> nn.Module:
    kind = getattr(transformers, f"{name}Config")
    known = {*inspect.signature(kind).parameters, *TOKENS, *own}
    settings = {**SHAPE, **TOKENS, "num_hidden_layers": 4, **copy.deepcopy(own)}
    torch.manual_seed(7)
    config = kind(**{key: value for key, value in settings.items() if key in known})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    unequal(model)
    return model.eval()


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_family_without_a_row_is_detected(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Attached, it passes the same oracles as the families that have one."""
    model, whole = build(name, ACCEPTED[name]), text(2, 88)
    known = model.config.model_type in FAMILIES
    assert not known, "it has a row now: take it out of ACCEPTED and of the list in the docs"
    if hasattr(model.get_decoder(), "_update_causal_mask"):
        try:
            cmr.attach(model).detach()
        except UnsupportedModelError:
            pytest.skip("in this release of transformers it makes masks of its own")
    want, places = model(whole).logits[:, 64:], torch.arange(64, 88).expand(2, -1)
    before = hooks(model), attributes(model), model.config._attn_implementation
    for store in ("kv", "states"):
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, "cmr"),
            cmr.attach(
                model, window=128, left_context=0, positions="true", store=store, **READS
            ) as memory,
        ):
            said = [record.getMessage() for record in caplog.records if record.name == "cmr"]
            assert [model.config.model_type in line for line in said] == [True]
            assert memory.stats()["family_detected"]
            memory.read(whole[:, :64])
            have = model(whole[:, 64:], position_ids=places).logits
        assert_close(f"logits, {store}", have, want, atol=2e-4, rtol=1e-4)
    assert (hooks(model), attributes(model), model.config._attn_implementation) == before
    assert torch.equal(model(whole).logits[:, 64:], want)


def test_a_detected_family_generates_past_its_window() -> None:
    model, ids = build("Phi", ACCEPTED["Phi"]), text(2, 46)
    want = greedy(model, ids)
    with cmr.attach(model, window=64, memory_weight=0.0):
        assert torch.equal(greedy(model, ids), want)
    with cmr.attach(model, window=48, threshold=0.0, memory_weight=0.8, refresh=2) as memory:
        greedy(model, ids)
        assert memory.tokens > 0 and all(memory.recalled)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_to_be_right_is_refused(name: str) -> None:
    own, why = REFUSED[name]
    model, ids = build(name, own).train(), text(1, 20)
    model.get_input_embeddings().eval()
    before = hooks(model), attributes(model), model.config._attn_implementation
    modes = [module.training for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=f"(?s){why}.*Covered: .*llama") as caught:
        cmr.attach(model)
    assert f"'{model.config.model_type}'" in str(caught.value)
    assert (hooks(model), attributes(model), model.config._attn_implementation) == before
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert model(ids).logits.isfinite().all()


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "falcon_heads"])
def test_every_row_could_have_been_detected(
    name: str, tiny: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detection of a family whose row is known finds a row that computes the same."""
    model = tiny(name)
    row = FAMILIES[model.config.model_type]
    monkeypatch.setattr(detection, "FAMILIES", {})
    found = detection.adapt(model)
    assert found.detected
    assert (found.family.names, found.family.plug) == (row.names, row.plug)
    assert [found.rotates(n) for n in OTHER_LAYERS] == [
        name != "smollm3" or n % 2 == 0 for n in OTHER_LAYERS
    ]


def test_a_layer_that_attends_to_something_else_is_named(
    tiny: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second check alone sees what keys and values do not: here a scale of its own."""
    model = tiny("llama")
    monkeypatch.setattr(detection, "FAMILIES", {})
    weave = detection.LayerMemory

    def biased(held: Any, bias: torch.Tensor, *others: Any) -> Any:
        return weave(held, bias + 0.5, *others)

    monkeypatch.setattr(detection, "LayerMemory", biased)
    with pytest.raises(UnsupportedModelError, match="read from memory, layer 0 attends to"):
        detection.adapt(model)


def test_a_half_precision_model_is_detected() -> None:
    model = build("Granite", ACCEPTED["Granite"]).to(torch.bfloat16)
    assert detection.adapt(model).detected
    wrong = build("Cohere", {}).to(torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match="its keys at layer 0"):
        detection.adapt(wrong)
