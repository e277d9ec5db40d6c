"""Models with 8-bit and 4-bit weights: the oracles hold up to the rounding of such a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import cmr
from cmr.errors import ConfigError
from cmr.integration.calibration.files import identity
from cmr.integration.decoder.adapter import ModelAdapter
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import READS_ALL, build, greedy, stepwise, text

has_avx512bf16 = pytest.importorskip("bitsandbytes.functional").has_avx512bf16
DTYPE = torch.bfloat16
BITS: dict[str, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": DTYPE,
    },
}


def load(name: str, bits: str, folder: Path) -> nn.Module:
    """A tiny decoder with weights of so many bits, loaded as a user does."""
    build(name).save_pretrained(folder / "model")
    return AutoModelForCausalLM.from_pretrained(
        folder / "model",
        quantization_config=BitsAndBytesConfig(**BITS[bits]),
        dtype=DTYPE,
        device_map="cpu",
    ).eval()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], nn.Module]:
    """`load`, once for all tests: whoever attaches to the model detaches again."""
    kept: dict[tuple[str, str], nn.Module] = {}

    def get(name: str, bits: str) -> nn.Module:
        if (name, bits) not in kept:
            kept[name, bits] = load(name, bits, tmp_path_factory.mktemp(name))
        return kept[name, bits]

    return get


@pytest.fixture(params=[(name, bits) for name in ("llama", "gpt2", "phi3") for bits in BITS])
def quantised(
    request: pytest.FixtureRequest, loaded: Callable[[str, str], nn.Module]
) -> Iterator[nn.Module]:
    model = loaded(*request.param)
    kinds = {weight.dtype for weight in model.parameters()}
    assert kinds & {torch.int8, torch.uint8}, "the weights were not quantised"
    yield model


def test_off_changes_no_bit_and_detach_leaves_nothing(quantised: nn.Module) -> None:
    ids = text(2, 40)
    want = quantised(ids).logits, stepwise(quantised, ids, 36), greedy(quantised, ids, tokens=4)
    before = hooks(quantised), attributes(quantised), quantised.config._attn_implementation
    with cmr.attach(quantised, window=64, memory_weight=0.0) as memory:
        memory.read(text(2, 70, seed=1))
        have = quantised(ids).logits, stepwise(quantised, ids, 36), greedy(quantised, ids, tokens=4)
    for one, other in zip(have, want, strict=True):
        assert torch.equal(one, other)
    with cmr.attach(quantised, window=64, threshold=0.0, memory_weight=0.8) as memory:
        memory.read(text(2, 70, seed=1))
        assert not torch.equal(quantised(ids).logits, want[0])
    assert (
        hooks(quantised),
        attributes(quantised),
        quantised.config._attn_implementation,
    ) == before
    assert torch.equal(quantised(ids).logits, want[0])


def rms(x: torch.Tensor) -> float:
    return float(x.float().square().mean().sqrt())


@pytest.mark.parametrize("store", ["kv", "states"])
def test_all_in_memory_is_full_attention(store: str, quantised: nn.Module) -> None:
    """As near as the model is to itself with its embeddings rounded once more."""
    whole, layers = text(1, 88), range(quantised.config.num_hidden_layers)
    want = quantised(whole).logits[:, 64:]
    embedded = quantised.get_input_embeddings()(whole)
    noise = 1 + torch.finfo(DTYPE).eps * torch.randn(embedded.shape)
    rounded = quantised(inputs_embeds=(embedded.float() * noise).to(DTYPE)).logits[:, 64:]
    places = torch.arange(64, 88)[None]
    alone = quantised(whole[:, 64:], position_ids=places).logits
    settings = {**READS_ALL, "target_layers": layers, "positions": "true", "store": store}
    with cmr.attach(quantised, window=128, left_context=0, **settings) as memory:
        memory.read(whole[:, :64])
        ring = memory._core.ring
        assert {ring.keys[n].dtype for n in layers} == {ring.index.dtype} == {DTYPE}
        have = quantised(whole[:, 64:], position_ids=places).logits
    assert rms(have - want) <= rms(rounded - want) < 0.1 * rms(alone - want)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", ["surprise", "gradient_based", "attention_based"])
@pytest.mark.filterwarnings("error")
def test_blocks_are_scored(method: str, bits: str, loaded: Callable[[str, str], nn.Module]) -> None:
    model = loaded("llama", bits)
    if method == "gradient_based" and bits == "4bit" and has_avx512bf16():
        with pytest.raises(ConfigError, match=r"'gradient_based' needs gradients.*'surprise'"):
            cmr.attach(model, window=64, scoring_method=method)
        return
    with cmr.attach(model, window=64, scoring_method=method) as memory:
        memory.read(text(2, 130))
        found = [entry.relevance_score for entry in memory.entries()]
    assert len(set(found)) > 3


@pytest.mark.parametrize("bits", BITS)
def test_a_memory_is_saved_and_only_loaded_by_the_same_weights(
    bits: str, loaded: Callable[[str, str], nn.Module], tmp_path: Path
) -> None:
    model, ids = loaded("llama", bits), text(1, 30)
    other = loaded("llama", "4bit" if bits == "8bit" else "8bit")
    with cmr.attach(model, window=64, threshold=0.0, memory_weight=0.8) as memory:
        memory.read(text(100, seed=1))
        want = model(ids).logits
        memory.save(tmp_path / "saved")
    with pytest.raises(cmr.ModelMismatchError):
        cmr.load(tmp_path / "saved", other)
    with cmr.load(tmp_path / "saved", model):
        assert torch.equal(model(ids).logits, want), "looking at the weights changed them"
    fresh = load("llama", bits, tmp_path)  # as another process has it, before its first forward
    with cmr.load(tmp_path / "saved", fresh):
        assert torch.equal(fresh(ids).logits, want)
    assert identity(ModelAdapter(model)) == identity(ModelAdapter(build("llama").to(DTYPE)))
