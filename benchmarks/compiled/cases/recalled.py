"""The tokens of chosen blocks, and what is left of them unread."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu.search import recalled as gpu

BLOCK, BLOCKS = 32, 2048


def _recalled(entries: int, hidden: int) -> Case:
    table, within = integers(1, entries), integers(1, 3, 2)
    stored, index = [integers(BLOCKS, BLOCK) for _ in range(2)], meta(BLOCKS, BLOCK, hidden)
    flags = [meta(1, entries * BLOCK, dtype=torch.bool) for _ in range(2)]
    out = *flags, *(integers(1, entries * BLOCK) for _ in range(2)), floats(1)
    used = *(integers(BLOCKS) for _ in range(2)), 5000
    return Case(
        f"search.recalled.recalled/{entries}x{hidden} bfloat16",
        lambda: gpu.recalled(
            table, within, *stored, index, *used, floats(1), 0.8, 1.325, 3.0, *out
        ),
        launches=1,
        bytes=size(table, within, *out) + entries * 4 * 8 + entries * BLOCK * (2 * 8 + 2 * hidden),
        flops=0,
    )


def _without_unread(entries: int) -> Case:
    table, read = integers(1, entries), meta(1, entries * BLOCK, dtype=torch.bool)
    positions, out = integers(BLOCKS, BLOCK), integers(BLOCKS, BLOCK)
    return Case(
        f"search.recalled.without_unread/{entries}",
        lambda: gpu.without_unread(positions, table, read, out),
        launches=1,
        bytes=size(positions, table, read, out),
        flops=0,
    )


CASES = [_recalled(12, 576), _recalled(12, 4096), _without_unread(12)]
