"""Tables of blocks of a store at random, and what is read of them."""

from __future__ import annotations

import torch

from cmr.kernels.search.recalled import Sure, Used


def chosen(rows: int, entries: int, slots: int, size: int, hidden: int) -> tuple[torch.Tensor, ...]:
    """What `recalled` is given: a slot once a row at most, some tokens empty, some blank.

    Without what `counting` gives.
    """
    table = torch.stack([torch.randperm(slots)[:entries] for _ in range(rows)])
    table[torch.rand(rows, entries) > 0.8] = -1
    positions = torch.arange(slots * size).view(slots, size)
    positions = positions.masked_fill(torch.rand(slots, size) > 0.9, -1)
    ids = torch.randint(1, 40, (slots, size))
    index = torch.randn(slots, size, hidden)
    index[torch.rand(slots, size) > 0.8] = 0
    within = torch.randint(-1, slots * size, (rows, 2, 2)).sort(-1).values
    return table, within, positions, ids, index


def counting(rows: int, slots: int) -> tuple[Used, Sure]:
    """The rest of it: where their use is counted, and what the bias is made of."""
    used = Used(torch.randint(0, 9, (slots,)), torch.randint(0, 9, (slots,)), 5)
    return used, Sure(torch.rand(rows) * 2, 0.5, 1.5, 3.0)
