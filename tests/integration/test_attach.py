"""Settings that recall little or nothing are taken, and said when a memory is built."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import CMRWarning
from cmr.integration.calibration.files import identity
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.retrieval.calibration import Calibration
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import LAYERS, READS_ALL, text

LITTLE: list[tuple[dict[str, Any], str]] = [
    ({"target_layers": [1, 3]}, r"target_layers=\[1, 3\]: .*layers 1 to 4 .*without \[2, 4\]"),
    ({"target_layers": [0, 1, 2, 4, 5]}, r"target_layers=.*without \[3\]"),
    ({"target_layers": [1, 2, 3]}, r"target_layers=.*without \[4\]"),
    ({"target_layers": [4, 5]}, r"target_layers=.*without \[1, 2, 3\]"),
    ({"layers": [2, 4]}, r"intervention_layers=\[2, 4\]: .*without \[1, 3\]"),
    ({"memory_weight": 0.3}, r"memory_weight=0\.3: .*'auto' .* 0 turns memory off"),
    ({"memory_weight": 0.49}, r"memory_weight=0\.49: "),
]
ENOUGH: list[dict[str, Any]] = [
    {},
    READS_ALL,
    {"target_layers": [1, 2, 3, 4]},
    {"target_layers": [3, 4]},
    {"target_layers": LAYERS, "layers": [2, 3, 4, 5]},
    {"memory_weight": 0.5},
    {"memory_weight": 0},
    {"memory_weight": 0, "target_layers": [1, 3]},
    {"memory_weight": 0.3, "method": "gated", "target_layers": [1, 3]},
]


def said(model: nn.Module, **settings: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        cmr.attach(model, **settings).detach()
    return [each for each in seen if each.category is CMRWarning]


@pytest.mark.parametrize(("settings", "match"), LITTLE)
def test_what_recalls_little_is_said_once_where_it_was_asked_for(
    settings: dict[str, Any], match: str, llama: nn.Module
) -> None:
    with pytest.warns(CMRWarning, match=match) as seen:
        cmr.attach(llama, **settings).detach()
    assert len(seen) == 1 and seen[0].filename == __file__


@pytest.mark.parametrize("settings", ENOUGH)
def test_nothing_is_said_of_what_recalls_or_is_off(
    settings: dict[str, Any], llama: nn.Module
) -> None:
    assert said(llama, **settings) == []


def test_the_range_is_that_of_the_calibration(llama: nn.Module, tmp_path: Path) -> None:
    found = Calibration("tiny", identity(ModelAdapter(llama)), 2, target_layers=(2, 3))
    path = str(found.save(tmp_path / "tiny.safetensors"))
    assert said(llama, calibration=path) == said(llama, calibration=path, layers=[3]) == []
    (one,) = said(llama, calibration=path, layers=[2])
    assert "layers 2 to 3 together" in str(one.message)


def test_a_loaded_memory_says_it_too(llama: nn.Module, tmp_path: Path) -> None:
    with cmr.attach(llama) as memory:
        memory.read(text(600))
        memory.save(tmp_path / "mem")
    with pytest.warns(CMRWarning, match=r"memory_weight=0\.1") as seen:
        cmr.load(tmp_path / "mem", llama, memory_weight=0.1).detach()
    assert len(seen) == 1 and seen[0].filename == __file__


def test_where_warnings_are_errors_nothing_is_attached(llama: nn.Module) -> None:
    before, want = (hooks(llama), attributes(llama)), llama(text(1, 20)).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error", CMRWarning)
        with pytest.raises(CMRWarning, match="memory_weight"):
            cmr.attach(llama, memory_weight=0.3)
    assert (hooks(llama), attributes(llama)) == before
    assert torch.equal(llama(text(1, 20)).logits, want)
