"""Scores of what is asked in parts."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu.search import parts as gpu

STEPS = 3


def _flags(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.bool)


def _part_scores(tokens: int, blocks: int, parts: int) -> Case:
    z, seen = floats(1, tokens, blocks), _flags(1, blocks)
    asked = integers(1, tokens), _flags(1, parts), floats(1, tokens), floats(1, parts, blocks)
    links = integers(blocks, STEPS), integers(blocks, 2 * STEPS - 1)
    windows = *links, _flags(blocks), _flags(blocks)
    numbers = 1, 8.0, 0.2, 0.4, 0.7, 1.4, -0.75, 0.8, 0.45, 12, 1.4
    room = floats(1, tokens), floats(1, parts), floats(1, 3, parts, blocks)
    out = floats(1, blocks), integers(1, blocks), floats(1, parts, tokens), floats(1)
    return Case(
        f"search.parts.part_scores/{tokens}x{blocks} in {parts}",
        lambda: gpu.part_scores(z, seen, *asked, *windows, *numbers, *room, *out),
        launches=5,
        bytes=size(z, seen, *asked, *windows, *out),
        flops=4 * tokens * blocks * STEPS,
        registers=100,
    )


CASES = [_part_scores(128, 2048, 6)]
