"""Every family by every way of reading: attention, next-token memory, both, and blended states.

Random weights recall nothing that anyone asked for: what is held here is that each way reads, and
that what it reads is the row's own. What is recalled was measured (docs/next-token.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import FAMILIES, OTHERS, greedy, text

READINGS: dict[str, dict[str, Any]] = {
    "attention": {"memory_weight": 0.5},
    "knn": {"memory_weight": 0.0, "knn": True},
    "both": {"memory_weight": 0.5, "knn": True},
    "residual": {"method": "weighted_sum", "memory_weight": 0.3},
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", (*FAMILIES, *OTHERS))
def test_every_family_reads_in_every_way(
    name: str, reading: str, tiny: Callable[[str], nn.Module]
) -> None:
    model, stored = tiny(name), text(2, 96, seed=1)
    ids = stored[:, :60]  # what comes next is stored
    plain, answer = model(ids).logits, greedy(model, ids)
    settings = {"threshold": 0.0, **READINGS[reading]}
    with cmr.attach(model, window=64, **settings) as memory:
        assert torch.equal(model(ids).logits, plain)  # nothing is stored yet
        memory.read(stored)
        read = model(ids).logits
        assert torch.isfinite(read).all()
        changed = (read - plain).abs().amax(dim=(1, 2))
        assert (changed > 1e-3).all(), f"{reading} changes nothing: {changed.tolist()}"
        gates = [passage.gate for row in memory.recalled for passage in row]
        assert gates, "no passage was recalled"
        if reading == "knn":
            follows = stored[:, 60, None]
            more = [x[:, -1].softmax(-1).gather(1, follows) for x in (read, plain)]
            assert (more[0] - more[1]).max() > 0.05, more
        greedy(model, ids)
        memory.clear()
        assert torch.equal(model(ids).logits, plain)
    assert torch.equal(greedy(model, ids), answer)
