"""Which of the best passages are read."""

from __future__ import annotations

from benchmarks.compiled.cases._case import Case, floats, integers, size
from cmr.kernels.gpu import cover as gpu


def _cover(tokens: int, k: int, most: int, neighbours: int, parts: int = 0) -> Case:
    blocks, run = 2048, 2 + 2 * neighbours
    values, shares, winner = floats(1, tokens, k), floats(1, tokens), None
    if parts:
        values, shares = floats(1, tokens, blocks), floats(1, parts, tokens)
        winner = integers(1, blocks)
    passages = floats(1, k), integers(1, k), floats(1, k)
    links = [integers(blocks) for _ in range(3)]
    out = floats(1, most), integers(1, most), *(integers(1, most, run) for _ in range(2))
    return Case(
        f"cover.cover/{tokens}x{k} {most} n{neighbours}" + f" p{parts}" * bool(parts),
        lambda: gpu.cover(
            values, shares, winner, *passages, *links, 0.75, 0.1, 2, neighbours, *out
        ),
        launches=1,
        bytes=4 * tokens * (k + 1) + size(*passages, *out),
        flops=4 * (most - 1) * tokens * k,
    )


CASES = [_cover(128, 8, 3, 0), _cover(512, 64, 64, 8), _cover(128, 8, 3, 1, 4)]
