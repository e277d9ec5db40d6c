"""Saved and loaded: configuration, weights, and what is remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr import CMRTransformer, FullCMRModel, IntegratedCMRModel
from tests.integration.models.test_passing import ALWAYS
from tests.integration.models.told import told
from tests.integration.tiny import text

Made = Callable[..., Any]
KEY = b"k" * 32
SETTINGS = {**ALWAYS, "target_layers": [1, 2, 3], "scoring_method": "hybrid"}


def remembering(made: Made, decoder: Any, **settings: Any) -> FullCMRModel:
    """A model that remembers two sessions; the number of a third one that ended lies between."""
    model: FullCMRModel = made(FullCMRModel, decoder, {**SETTINGS, **settings})
    for seed, name in enumerate(["anna", "gone", "ben"]):
        model(text(1, 50, seed=seed + 1), sessions=name)
    model.clear_memory("gone")
    return model


def test_a_new_process_gives_the_same_logits(llama: nn.Module, made: Made, tmp_path: Path) -> None:
    model, ids = remembering(made, llama), text(1, 20)
    model.set_retrieval_strategy("multi_criteria")
    model.save_pretrained(tmp_path / "model", memory=True)
    entries = [e.token_ids for e in model.get_top_memories(20, sequence="ben")]
    want = [model(ids, sessions=name).logits for name in ("ben", "anna")]
    assert not torch.equal(want[0], want[1])
    torch.save((want, ids, entries), tmp_path / "want.pt")
    script = (
        "import sys, torch, cmr\n"
        "want, ids, entries = torch.load(sys.argv[1] + '/want.pt')\n"
        "model = cmr.FullCMRModel.from_pretrained(sys.argv[1] + '/model')\n"
        "assert [e.token_ids for e in model.get_top_memories(20, sequence='ben')] == entries\n"
        "with torch.no_grad():\n"
        "    for name, logits in zip(('ben', 'anna'), want):\n"
        "        assert torch.equal(model(ids, sessions=name).logits, logits), name\n"
        "assert model.memory.recalled[0][0].session == 'anna'\n"
        "assert model.memory_config.retrieval.strategy == 'multi_criteria'\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


@pytest.mark.parametrize("kind", [CMRTransformer, IntegratedCMRModel])
def test_every_class_without_what_it_remembers(
    kind: type[Any], made: Made, tiny: Any, tmp_path: Path
) -> None:
    model, ids = made(kind, tiny("gpt2"), SETTINGS, output_hidden_size=32), text(1, 20)
    model.enable_memory()
    want = model(ids)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    again.enable_memory()
    have = again(ids)
    assert torch.equal(have.logits, want.logits)
    assert torch.equal(have.last_hidden_state, want.last_hidden_state)
    assert again.memory_config == model.memory_config
    assert again.memory_buffer.limits == model.memory_buffer.limits
    assert again.memory.tokens == 20
    again.disable_memory()
    again.save_pretrained(tmp_path / "off")
    assert not kind.from_pretrained(tmp_path / "off").memory_enabled
    with pytest.raises(cmr.ConfigError, match=f"FullCMRModel expected.*{kind.__name__}"):
        FullCMRModel.from_pretrained(tmp_path)


def test_the_decoder_alone_loads_from_the_folder(
    llama: nn.Module, made: Made, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    ids = text(1, 20)
    model = remembering(made, llama)
    want = model(ids, use_memory=False).logits
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation == "sdpa"
    assert torch.equal(plain.eval()(ids).logits, want)


def test_what_is_remembered_goes_to_another_model(
    llama: nn.Module, made: Made, tmp_path: Path
) -> None:
    model = remembering(made, llama)
    model.save_memory(tmp_path, key=KEY)
    want = [told(model.memory, name) for name in ("anna", "ben")]
    entries = [e.position_idx for e in model.get_memory_for_sequence("ben")]
    relevance = [e.relevance_score for e in model.get_memory_for_sequence("ben")]
    model.cleanup()
    fresh = made(FullCMRModel, llama, SETTINGS)
    fresh(text(1, 10), sessions="carl")
    with pytest.raises(cmr.MemoryKeyError):
        fresh.load_memory(tmp_path, key=b"x" * 32)
    assert len(fresh.get_memory_for_sequence("carl")) == 30
    assert fresh.load_memory(tmp_path, key=KEY) == 4
    assert [told(fresh.memory, name) for name in ("anna", "ben")] == want
    ben = fresh.get_memory_for_sequence("ben")
    assert [entry.position_idx for entry in ben] == entries
    assert [entry.relevance_score for entry in ben] == relevance
    fresh.clear_memory("ben")
    assert {e.sequence_id for e in fresh.memory_buffer.retrieve_recent(999)} == {
        fresh.memory._core.table.require("anna")
    }
    fresh.save_memory(tmp_path, key=KEY)  # where ben was: not his numbers, nor his states
    fresh.cleanup()
    third = made(FullCMRModel, llama, SETTINGS)
    third.load_memory(tmp_path, key=KEY)
    assert len(third.get_memory_for_sequence("anna")) == len(third.memory_buffer) == 150


def test_what_is_not_saved(llama: nn.Module, made: Made, tmp_path: Path) -> None:
    model = remembering(made, llama)
    with model.memory.session("guest", create=True, ephemeral=True):
        model(text(1, 20))
    model.save_memory(tmp_path)
    assert json.loads((tmp_path / "sequences.json").read_text())["sequences"] == {
        "0": "anna",
        "2": "ben",
    }
    model.cleanup()
    fresh = made(FullCMRModel, llama, SETTINGS)
    fresh.load_memory(tmp_path)
    assert fresh.memory.sessions == ["anna", "ben"]


def test_a_load_that_is_refused_changes_nothing(
    llama: nn.Module, made: Made, tiny: Any, tmp_path: Path
) -> None:
    model = remembering(made, llama)
    model.save_memory(tmp_path / "saved")
    tokens, entries = model.memory.tokens, len(model.memory_buffer)

    def refused(error: type[Exception], match: str, path: Path, who: Any = model) -> None:
        held = who.memory.tokens, len(who.memory_buffer)
        with pytest.raises(error, match=match):
            who.load_memory(path)
        assert (who.memory.tokens, len(who.memory_buffer)) == held

    refused(ValueError, "anna", tmp_path / "saved")
    refused(cmr.MemoryNotFoundError, "does not exist", tmp_path / "nowhere")
    other = made(FullCMRModel, tiny("gpt2"), SETTINGS)
    refused(cmr.ModelMismatchError, "expected", tmp_path / "saved", other)
    assert (model.memory.tokens, len(model.memory_buffer)) == (tokens, entries)
    model.clear_memory()
    (tmp_path / "saved" / "sequences.json").write_text("{")
    refused(cmr.CorruptMemoryError, "sequences.json", tmp_path / "saved")
    with pytest.raises(cmr.MemoryNotFoundError, match=r"cmr_model\.json does not exist"):
        FullCMRModel.from_pretrained(tmp_path)
