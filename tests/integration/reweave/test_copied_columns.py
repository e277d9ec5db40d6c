"""On a CPU the rows of a batch copy what they read, and little more; each reads as if alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cmr

LENGTHS = {"short": 40, "long": 200, "none": 0}


@pytest.mark.parametrize("positions", ["constant", "layout", "true"])
def test_rows_that_read_unlike_much_each_read_as_if_alone(llama: nn.Module, positions: str) -> None:
    torch.manual_seed(3)
    text = torch.randint(3, 200, (3, 24))
    with (
        torch.no_grad(),
        cmr.attach(
            llama, window=64, budget=1024, threshold=0.0, ratio=0.0, gain=0.0, positions=positions
        ) as memory,
    ):
        for name, length in LENGTHS.items():
            session = memory.session(name, create=True)
            if length:
                session.read(torch.randint(3, 200, (length,)))
        with memory.session(*LENGTHS):
            together = llama(text).logits
            recall = next(iter(memory._core.records)).search.recall
        counts = recall.read.sum(1)
        assert counts[0] < counts[1] < recall.read.shape[1] and counts[2] == 0
        assert {held.keys.shape[2] for held in recall.layers.values()} == {int(counts[1])}
        for row, name in enumerate(LENGTHS):
            with memory.session(name):
                alone = llama(text[row : row + 1]).logits
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)
        twin = recall.select(torch.tensor([1, 1, 0]))
        for held in twin.layers.values():
            assert torch.equal(held.keys[0], held.keys[1])
        number = next(iter(recall.layers))
        assert torch.equal(twin._copied(number).keys[2], recall.layers[number].keys[0])
