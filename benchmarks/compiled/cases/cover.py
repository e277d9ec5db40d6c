"""Which of the best passages are read."""

from __future__ import annotations

from benchmarks.compiled.cases._case import Case, floats, integers, size
from cmr.kernels.gpu import cover as gpu


def _cover(tokens: int, k: int, most: int, neighbours: int) -> Case:
    values, shares, blocks, run = floats(1, tokens, k), floats(1, tokens), 2048, 2 + 2 * neighbours
    passages = floats(1, k), integers(1, k), floats(1, k)
    links = [integers(blocks) for _ in range(3)]
    out = floats(1, most), integers(1, most), *(integers(1, most, run) for _ in range(2))
    return Case(
        f"cover.cover/{tokens}x{k} {most} n{neighbours}",
        lambda: gpu.cover(values, shares, *passages, *links, 0.75, 0.1, 2, neighbours, *out),
        launches=1,
        bytes=size(values, shares, *passages, *out),
        flops=4 * (most - 1) * values.numel(),
    )


CASES = [_cover(128, 8, 3, 0), _cover(512, 64, 64, 8)]
