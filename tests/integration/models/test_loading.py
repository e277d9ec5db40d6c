"""A decoder from a description, a name, a folder, or as it was loaded; or an error that helps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import cmr
from cmr import (
    BackboneAdapter,
    CMRTransformer,
    FullCMRModel,
    GemmaAdapter,
    IntegratedCMRModel,
    MistralAdapter,
    MistralCMRModel,
    create_mistral_cmr_model,
)
from cmr.integration.decoder.families import FAMILIES
from cmr.integration.models.backbone.backbones import BACKBONES
from cmr.integration.models.backbone.loaded import load_backbone
from tests.integration.models.test_passing import ALWAYS
from tests.integration.tiny import build, text

Made = Callable[..., Any]
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 3, "vocab_size": 200}


def test_descriptions() -> None:
    spec = {
        "hidden_size": 48,
        "num_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 72,
        "max_position_embeddings": 512,
        "vocab_size": 100,
    }
    model: Any = load_backbone(spec)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (48, 3, 72)
    assert config.num_key_value_heads == 4 and config.max_position_embeddings == 512
    assert not model.training
    bare: Any = load_backbone(SimpleNamespace(vocab_size=120, num_hidden_layers=2))
    assert (bare.config.vocab_size, len(bare.model.layers)) == (120, 2)
    gpt2: Any = load_backbone({"model_type": "gpt2", "n_embd": 32, "num_layers": 2, "n_head": 2})
    assert gpt2.config.model_type == "gpt2" and gpt2.config.n_layer == 2


def test_random_weights_are_always_the_same_and_touch_no_random_state() -> None:
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    one = load_backbone(SMALL)
    assert torch.equal(torch.rand(1), want)
    other = load_backbone(SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert load_backbone(SMALL, dtype=torch.bfloat16).dtype == torch.bfloat16  # type: ignore[attr-defined]


def test_descriptions_that_are_none() -> None:
    cases: list[tuple[Any, type[Exception], str]] = [
        ({"hiden_size": 8}, cmr.ConfigError, "did you mean 'hidden_size'"),
        ({"model_type": "mistrall"}, cmr.ConfigError, "did you mean 'mistral'"),
        ({"hidden_size": 65, "num_attention_heads": 4}, cmr.ConfigError, "multiple"),
        (7, TypeError, "got int"),
        (transformers.T5Config(), cmr.ConfigError, "no decoder"),
    ]
    for given, error, match in cases:
        with pytest.raises(error, match=match):
            load_backbone(given)


def test_a_name_that_is_not_to_be_had(tmp_path: Path) -> None:
    """Never another model in its place."""
    for make in (CMRTransformer, IntegratedCMRModel, FullCMRModel):
        with pytest.raises(cmr.ModelNotFoundError, match=r"no/such-model.*hf auth login"):
            make("no/such-model")
    with pytest.raises(cmr.ModelNotFoundError, match="no/such-model"):
        CMRTransformer(None, None, model_name="no/such-model")
    with pytest.raises(cmr.ModelNotFoundError, match=r"Ministral-8B.*hf download"):
        create_mistral_cmr_model(use_quantization=False)
    with pytest.raises(cmr.ModelNotFoundError, match=r"without config\.json"):
        FullCMRModel(tmp_path)


def test_from_a_folder(llama: nn.Module, made: Made, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)  # type: ignore[operator]
    ids, config = text(1, 9), llama.config
    want = llama(ids).logits
    for make, args in (
        (CMRTransformer, (None, ALWAYS, str(tmp_path))),
        (CMRTransformer, (config, ALWAYS, str(tmp_path))),
        (IntegratedCMRModel, (str(tmp_path), ALWAYS, "cpu")),
        (FullCMRModel, (tmp_path, ALWAYS)),
    ):
        model = made(make, *args)
        assert not model.training and torch.equal(model(ids).logits, want)
    assert made(FullCMRModel, tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(cmr.ConfigError, match="one of them expected"):
        CMRTransformer(llama, None, model_name=str(tmp_path))


def test_devices(monkeypatch: pytest.MonkeyPatch, made: Made) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for where in ("cpu", "auto", None, torch.device("cpu")):
        model = made(FullCMRModel, SMALL, ALWAYS, where)
        assert model.device.type == "cpu"
    for settings, where in (({}, "cuda"), ({"device": "cuda:1"}, None)):
        with pytest.raises(cmr.ConfigError, match=r"cuda.*no CUDA device.*device='cpu'"):
            FullCMRModel(SMALL, {**ALWAYS, **settings}, where)
    with pytest.raises(cmr.ConfigError, match="one expected"):
        FullCMRModel(SMALL, {"device": "cuda"}, "cpu")
    with pytest.raises(cmr.ConfigError, match="'cpu', 'cuda', 'auto'"):
        FullCMRModel(SMALL, None, "cpv")
    assert made(CMRTransformer, SMALL, {"device": "cpu"}).device.type == "cpu"


def test_arguments_that_would_be_ignored_are_refused(llama: nn.Module) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (llama, {"dtype": torch.float16}, "dtype.*a loaded model"),
        (llama, {"quantization": "8bit"}, "quantization.*a loaded model"),
        (SMALL, {"use_quantization": True}, "quantization.*random weights"),
        (SMALL, {"revision": "main"}, "revision.*random weights"),
        ("name", {"quantization": "8bit", "use_quantization": False}, "one of them expected"),
        ("name", {"quantization": "3bit"}, "'8bit', '4bit'"),
        ("name", {"quantization": 8}, "got int"),
    ]
    for source, options, match in cases:
        with pytest.raises(cmr.ConfigError, match=match):
            load_backbone(source, **options)


def test_quantised_weights_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(cmr.MissingPackageError, match=r"bitsandbytes.*use_quantization=False"):
        create_mistral_cmr_model("some/where")


@pytest.mark.parametrize("kind", ["8bit", "4bit", "config"])
def test_quantised_weights(kind: str, made: Made, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    build("mistral").save_pretrained(tmp_path)  # type: ignore[operator]
    how: dict[str, Any] = {"quantization": kind}
    if kind == "8bit":
        how = {"use_quantization": True}
    elif kind == "config":
        how = {"quantization": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    model = made(MistralCMRModel, tmp_path, {**ALWAYS, "target_layers": [1, 2]}, "cpu", **how)
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("Linear4bit" if kind == "4bit" else "Linear8bitLt") in kinds
    ids = text(1, 30)
    plain = model(ids, use_memory=False).logits
    model(text(1, 40, seed=1))
    assert not torch.equal(model(ids).logits, plain) and model.memory.recalled[0]
    assert model.memory.stats()["store"] == "kv" and model.dtype.is_floating_point
    assert model.memory._core.ring.parts[0]["keys.1"].dtype == model.dtype
    model.save_pretrained(tmp_path / "again")
    again = made(MistralCMRModel.from_pretrained, tmp_path / "again")
    for saved in (model, again):  # saving leaves what is saved as it was
        assert torch.equal(saved(ids, use_memory=False).logits, plain)


def test_kinds_of_decoders(llama: nn.Module, made: Made, tmp_path: Path) -> None:
    named = {kind for row in BACKBONES.values() for kind in row.model_types}
    assert named == set(FAMILIES), "model_types of BACKBONES and rows of FAMILIES differ"
    mistral = build("mistral")
    assert type(MistralAdapter.of(mistral)) is MistralAdapter
    assert BackboneAdapter.of(llama).name == "llama" and BackboneAdapter("qwen").model_name
    assert MistralAdapter().fits(mistral) and not GemmaAdapter().fits(mistral)
    assert MistralAdapter().view(mistral).depth == 6
    assert MistralAdapter().load(SMALL).config.model_type == "mistral"
    made(FullCMRModel, build("gemma2"), ALWAYS, adapter=GemmaAdapter())(text(1, 9))
    llama.save_pretrained(tmp_path)  # type: ignore[operator]
    wrong = r"'mistral'.*'ministral'.*expected, got one of 'llama'"
    for source in (llama, llama.config, tmp_path):
        with pytest.raises(cmr.UnsupportedModelError, match=wrong):
            FullCMRModel(source, adapter=MistralAdapter())
        with pytest.raises(cmr.UnsupportedModelError, match=wrong):
            create_mistral_cmr_model(source, use_quantization=False)
    with pytest.raises(cmr.UnsupportedModelError, match=wrong):
        MistralAdapter.of(llama)
    with pytest.raises(cmr.ConfigError, match="gemma"):
        GemmaAdapter("mistral")
    with pytest.raises(TypeError, match="BackboneAdapter"):
        FullCMRModel(llama, adapter="mistral")  # type: ignore[arg-type]
    with pytest.raises(cmr.ConfigError, match="got None"):
        BackboneAdapter().load()


def test_a_mistral(made: Made) -> None:
    config = transformers.MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=200,
    )  # fmt: skip
    model = create_mistral_cmr_model(config, use_quantization=False, cmr_config=ALWAYS)
    assert isinstance(model, MistralCMRModel) and isinstance(model, FullCMRModel)
    assert model(text(1, 9)).last_hidden_state.shape == (1, 9, 256)
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert made(MistralCMRModel, {**SMALL, "num_key_value_heads": 2}).config.model_type == "mistral"
