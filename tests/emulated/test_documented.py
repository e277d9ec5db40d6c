"""The counts that docs/gpu-model.md gives of a model of 32 layers."""

from __future__ import annotations

import torch

from tests.emulated.decoding import (
    Words,
    count_of_reading,
    counts_alone,
    counts_of,
    on_emulated,
)
from tests.emulated.device import Device

DEPTH = 32
OF_THE_MODEL = 1302
"""Operations of a step of the model alone."""
BEYOND = {
    "step": (33, 33, 0),
    "search": (41, 47, 0),
    "leaving": (76, 76, 1),
    "prompt": (240, 248, 1),
}
"""By the kind of forward: operations beyond these, the same with a tokenizer, and waits."""
READING = (13_095, 8)


def test_they_are_counted() -> None:
    layers = {"target_layers": None}
    with torch.no_grad(), Device().running() as device:
        model = on_emulated(device, DEPTH)
        alone = counts_alone(device, model)
        bare = counts_of(device, model, **layers)
        worded = counts_of(device, model, **layers, tokenizer=Words())
        read = count_of_reading(device, model, **layers)
    assert alone["step"].launched == OF_THE_MODEL
    found = {}
    for kind in BEYOND:
        own = alone["prompt" if kind == "prompt" else "step"].launched
        assert bare[kind].waited == worded[kind].waited
        found[kind] = bare[kind].launched - own, worded[kind].launched - own, bare[kind].waited
    assert found == BEYOND
    assert (read.launched, read.waited) == READING
