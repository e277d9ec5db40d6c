"""Linking new blocks of the ring."""

from __future__ import annotations

from benchmarks.compiled.cases._case import Case, floats, integers, size
from cmr.kernels.gpu import ring_link as gpu

SLOTS, BLOCK = 4096, 32


def _link(count: int) -> Case:
    columns = [integers(1), *(integers(SLOTS) for _ in range(6)), floats(SLOTS)]
    tokens = [integers(SLOTS, BLOCK), integers(SLOTS, BLOCK)]
    new = [integers(count) for _ in range(5)]
    text, relevance = [integers(1, count * BLOCK) for _ in range(2)], floats(1, count)
    return Case(
        f"ring_link.ring_link/{count}",
        lambda: gpu.ring_link(*columns, *tokens, *new, *text, relevance),
        launches=1,
        bytes=size(*new, *text, *text, relevance) + 64 * count,
        flops=0,
        registers=96,
    )


CASES = [_link(16), _link(512)]
