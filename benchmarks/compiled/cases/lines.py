"""Where the lines end that passages stand in."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, integers, meta, size
from cmr.kernels.gpu.search import lines as gpu

BLOCK, BLOCKS = 32, 2048


def _within_lines(k: int, neighbours: int) -> Case:
    starts, out, run = integers(1, k), integers(1, k, 2), 2 + 2 * neighbours
    stored = [integers(BLOCKS), integers(BLOCKS), *(integers(BLOCKS, BLOCK) for _ in range(2))]
    ends = meta(49153, dtype=torch.bool)
    return Case(
        f"search.lines.within_lines/{k} n{neighbours}",
        lambda: gpu.within_lines(starts, *stored, ends, 2, neighbours, out),
        launches=1,
        bytes=size(starts, out) + k * run * (2 * 8 + 17 * BLOCK),
        flops=0,
    )


CASES = [_within_lines(3, 1), _within_lines(64, 8)]
