"""Stored texts of lines and passages in them at random."""

from __future__ import annotations

import torch

from cmr.kernels.reference.select import SearchColumns
from tests.kernels.helpers.selecting import columns_of


def lined(
    batch: int, k: int, blocks: int, block: int
) -> tuple[torch.Tensor, SearchColumns, torch.Tensor, torch.Tensor]:
    """Starts, columns, token ids in and out of a vocabulary of 40, and which of them end a line."""
    columns = columns_of(blocks, 3, block)
    starts = torch.stack([torch.randperm(blocks)[:k] for _ in range(batch)])
    starts[:, -1] = -1
    breaks = torch.rand(41) > 0.8
    breaks[-1] = True
    return starts, columns, torch.randint(-2, 45, (blocks, block)), breaks
