"""The choice of passages."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import select as gpu
from cmr.kernels.select import new_scratch, new_selection

BLOCK = 32


def _select(tokens: int, blocks: int, k: int, neighbours: int, before: bool = True) -> Case:
    maxima = floats(1, tokens, blocks)
    mask = meta(1, tokens, dtype=torch.bool)
    columns = [integers(blocks), integers(blocks, BLOCK), integers(blocks), integers(blocks)]
    columns += [integers(blocks)]
    rows = [integers(1), integers(1) if before else None]
    scratch = new_scratch(maxima, 1, tokens, blocks)
    out = new_selection(maxima, k, 2 + 2 * neighbours)
    rule = (2, 8.0, 1.0, 0.7, 0.18, 12, 1.0, 2, neighbours)
    return Case(
        f"select.maxsim_select/{tokens}x{blocks} k{k} n{neighbours}",
        lambda: gpu.maxsim_select(maxima, mask, *columns, *rows, *rule, *scratch, *out),
        launches=4,
        bytes=2 * size(maxima) + size(*columns, *scratch, *out),
        flops=12 * maxima.numel(),
    )


def _best_passages(blocks: int, k: int) -> Case:
    line, base, out = floats(1, blocks), floats(1, blocks), (floats(1, k), integers(1, k))
    columns = [integers(blocks), integers(blocks, BLOCK)] + [integers(blocks) for _ in range(3)]
    seen, certainty = meta(1, blocks, dtype=torch.bool), floats(1)
    return Case(
        f"select.best_passages/{blocks} k{k}",
        lambda: gpu.best_passages(line, base, seen, certainty, *columns, 1.0, *out),
        launches=1,
        bytes=size(line, base, seen, *columns[2:4], *out),
        flops=4 * blocks,
    )


CASES = [
    _best_passages(2048, 8),
    _best_passages(1 << 20, 64),
    _select(32, 2048, 4, 2),
    _select(64, 1 << 20, 64, 8, before=False),
]
