"""The words of a query in passages."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import words as gpu

BLOCK = 32


def _words(tokens: int, blocks: int, parts: int) -> Case:
    query, of, classes = integers(1, tokens), integers(1, tokens), integers(49153)
    stored = integers(blocks, BLOCK), integers(blocks, BLOCK), integers(blocks)
    seen = meta(1, blocks, dtype=torch.bool)
    out = floats(1, tokens, blocks), floats(1, tokens), floats(1, tokens), floats(1, parts, blocks)
    return Case(
        f"words.words/{tokens}x{blocks} in {parts}",
        lambda: gpu.words(query, of, *stored, seen, classes, 20000, *out),
        launches=3,
        bytes=size(query, of, *stored, seen, *out),
        flops=4 * tokens * blocks * BLOCK,
        registers=160,
    )


CASES = [_words(128, 2048, 6)]
