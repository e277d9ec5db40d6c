"""The layer whose states are searched is decided once, and whatever looks at them looks there."""

from __future__ import annotations

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
from tests.integration.tiny import text

MEASURED = 4
"""The layer of the calibration; without one it would be 2, at a quarter of six."""
SETTINGS: dict[str, Any] = {"window": 64, "threshold": 0.0}


@pytest.fixture
def file(llama: nn.Module, tmp_path: Path) -> str:
    """A calibration that says which layer and takes its states as they are."""
    made = Calibration("tiny", identity(ModelAdapter(llama)), MEASURED)
    return str(made.save(tmp_path / "tiny.safetensors"))


def relevance(memory: cmr.Memory) -> torch.Tensor:
    ring = memory._core.ring
    return ring.relevance[: ring.high_water].clone()


@pytest.mark.parametrize("method", ["attention_based", "hybrid"])
@pytest.mark.parametrize("changed", [False, True])
def test_relevance_is_that_of_the_measured_layer(
    method: str, changed: bool, llama: nn.Module, file: str
) -> None:
    """As if that layer had been asked for by name; also where the method is set while it runs."""
    found = []
    for how in ({"calibration": file}, {"calibration": "none", "index_layer": MEASURED}):
        first = "variance_based" if changed else method
        with cmr.attach(llama, **SETTINGS, scoring_method=first, **how) as memory:
            memory.change(scoring_method=method)
            memory.read(text(1, 256))
            assert memory.stats()["index_layer"] == MEASURED
            assert set(memory._core.scorer.stats()["scores"]["layers"]) == {MEASURED}
            found.append(relevance(memory))
    assert torch.equal(*found)


def test_a_saved_memory_is_searched_at_the_layer_it_was_indexed_at(
    llama: nn.Module, file: str, tmp_path: Path
) -> None:
    ids, how = text(1, 40, seed=3), {"scoring_method": "attention_based", "calibration": file}
    with cmr.attach(llama, **SETTINGS, **how) as memory:
        memory.read(text(600))
        memory.save(tmp_path / "mem")
        want = llama(input_ids=ids).logits
        memory.read(text(300, seed=1))
        later = relevance(memory)
    # Nothing in a folder names a file: whoever loads says where the calibration lies.
    with pytest.raises(ConfigError, match="calibration=FILE"):
        cmr.load(tmp_path / "mem", llama)
    with cmr.load(tmp_path / "mem", llama, calibration=file) as memory:
        assert memory.stats()["index_layer"] == MEASURED and memory.stats()["calibrated"]
        assert torch.equal(llama(input_ids=ids).logits, want)
        memory.read(text(300, seed=1))
        assert torch.equal(relevance(memory), later)


def test_states_of_another_layer_are_refused(llama: nn.Module, tmp_path: Path) -> None:
    """They have the same shape, and nothing can be found among them."""
    with cmr.attach(llama, **SETTINGS, index_layer=3) as memory:
        memory.read(text(200))
        memory.save(tmp_path / "mem")
    for settings in ({"index_layer": None}, {"index_layer": 2}):
        with pytest.raises(ConfigError, match=r"index_layer: 3 expected, .*mem.*, got 2"):
            cmr.load(tmp_path / "mem", llama, **settings)
    with cmr.attach(llama, **SETTINGS) as memory:
        with pytest.raises(ConfigError, match=r"index_layer: 3 expected"):
            memory.load(tmp_path / "mem")
        assert memory.tokens == 0
    with cmr.load(tmp_path / "mem", llama) as memory:
        assert memory.stats()["index_layer"] == 3 and memory.tokens == 200
