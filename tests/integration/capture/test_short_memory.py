"""A memory of one block, or less: there is nothing to stand out from, and it is read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cmr


@pytest.mark.parametrize("tokens", [10, 32])
def test_a_note_of_a_single_block_is_recalled(tokens: int, llama: nn.Module) -> None:
    with cmr.attach(llama, window=128) as memory:
        memory.read(torch.randint(0, 200, (tokens,)))
        llama(torch.randint(0, 200, (1, 20)))
        (row,) = memory.recalled
    assert [(passage.start, passage.end) for passage in row] == [(0, tokens)]
    assert row[0].gate > 0
