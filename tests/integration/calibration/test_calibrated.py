"""A memory that is searched as its model was calibrated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import ConfigError
from cmr.integration.calibration.files import identity
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.retrieval.calibration import Calibration
from tests.integration.tiny import VOCABULARY

WIDTH = 24
SETTINGS: dict[str, Any] = {"window": 64, "left_context": 16, "budget": 1024, "threshold": 0.0}


def calibration(model: nn.Module, seed: int = 0, **changes: Any) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    made = Calibration(
        model="tiny",
        identity=identity(ModelAdapter(model)),
        index_layer=3,
        mean=0.1 * torch.randn(64, generator=generator),
        projection=torch.randn(64, WIDTH, generator=generator),
        target_layers=(2, 3, 4),
    )
    return replace(made, **changes)


@pytest.fixture
def file(llama: nn.Module, tmp_path: Path) -> str:
    return str(calibration(llama).save(tmp_path / "tiny.safetensors"))


def text(tokens: int = 600) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, VOCABULARY, (tokens,), generator=generator)


def test_what_is_indexed_is_projected_and_found(llama: nn.Module, file: str) -> None:
    with cmr.attach(llama, calibration=file, **SETTINGS) as memory:
        ring = memory._core.ring
        assert ring.index.shape[-1] == WIDTH and memory.stats()["index_layer"] == 3
        assert memory.stats()["target_layers"] == [2, 3, 4] and memory.stats()["calibrated"]
        memory.read(text())
        norms = ring.index[: ring.high_water].norm(dim=-1)
        assert norms[0, 0] == 0, "the attention sink must match nothing"
        held = ring.positions[: ring.high_water] >= 0
        held[0, 0] = False
        assert torch.allclose(norms[held], torch.ones(()), atol=1e-3)
        llama(input_ids=text()[None, 200:240])
        assert any(p.start <= 200 and p.end >= 240 for p in memory.recalled[0])


def test_states_of_zeros_stay_zeros(llama: nn.Module) -> None:
    states = torch.randn(2, 3, 64)
    states[0, 1] = 0
    found = calibration(llama).index(states)
    assert found.shape == (2, 3, WIDTH) and not found[0, 1].any()
    assert torch.allclose(found[1].norm(dim=-1), torch.ones(3))
    assert torch.allclose(calibration(llama).index(3 * states), found, atol=1e-6)


def test_a_saved_memory_says_the_same(llama: nn.Module, file: str, tmp_path: Path) -> None:
    ids = text()[None, 100:140]
    with cmr.attach(llama, calibration=file, **SETTINGS) as memory:
        memory.read(text())
        memory.save(tmp_path / "mem")
        want = llama(input_ids=ids).logits
    # Where the file lies is the caller's to say: no folder names a file of the machine.
    assert file not in (tmp_path / "mem" / "manifest.json").read_text()
    with pytest.raises(ConfigError, match=r"calibration: the file that .* was saved with expected"):
        cmr.load(tmp_path / "mem", llama)
    assert not hasattr(llama, "_cmr_memory")
    with cmr.load(tmp_path / "mem", llama, calibration=file):
        assert torch.equal(llama(input_ids=ids).logits, want)


def test_another_calibration_is_refused(llama: nn.Module, file: str, tmp_path: Path) -> None:
    with cmr.attach(llama, calibration=file, **SETTINGS) as memory:
        memory.read(text(200))
        memory.save(tmp_path / "mem")
    other = calibration(llama, seed=1).save(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"calibration: that of .* expected"):
        cmr.load(tmp_path / "mem", llama, calibration=str(other))
    with pytest.raises(ConfigError, match=r"calibration: that of .* expected"):
        cmr.load(tmp_path / "mem", llama, calibration="none")
    assert not hasattr(llama, "_cmr_memory")


def test_what_was_saved_without_one_is_loaded_without_one(llama: nn.Module, tmp_path: Path) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(200))
        memory.save(tmp_path / "mem")
    with cmr.load(tmp_path / "mem", llama) as memory:
        assert memory.config.retrieval.calibration == "sampled" and memory.tokens == 200


def test_one_of_another_model_is_refused(llama: nn.Module, tiny: Any, file: str) -> None:
    with pytest.raises(ConfigError, match="one of this model expected, got one of 'tiny'"):
        cmr.attach(tiny("qwen3"), calibration=file)
    with pytest.raises(ConfigError, match=r"a file of cmr.calibrate expected"):
        cmr.attach(llama, calibration=file + ".gone")
    with pytest.raises(ConfigError, match="index_layer: 3 expected"):
        cmr.attach(llama, calibration=file, index_layer=2)


def test_the_small_model_comes_with_one(smollm2: Any) -> None:
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, budget=1024) as memory:
        assert memory.stats()["calibrated"] and memory._core.ring.index.shape[-1] == 192
    with cmr.attach(model, budget=1024, calibration="none") as memory:
        assert not memory.stats()["calibrated"] and memory._core.ring.index.shape[-1] == 576
