"""Stored states blended into those of a layer."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import reweave_residual as gpu

BLOCK = 32
ENTRIES = 8
SLOTS = 4096


def _residual(tokens: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    states, store = meta(1, tokens, hidden, dtype=dtype), meta(SLOTS, BLOCK, hidden, dtype=dtype)
    table, stamps = integers(1, ENTRIES), integers(1, ENTRIES)
    created, positions, weight = integers(SLOTS), integers(SLOTS, BLOCK), floats(1)
    read = ENTRIES * BLOCK
    return Case(
        f"reweave_residual.reweave_residual_paged/{tokens}x{hidden} {str(dtype)[6:]}",
        lambda: gpu.reweave_residual_paged(
            states, store, table, stamps, created, positions, weight, 1.0, None
        ),
        launches=1,
        bytes=2 * size(states) + size(table, stamps) + read * (8 + hidden * store.element_size()),
        flops=6 * read * tokens * hidden,
        wide=("reweave_residual_kernel",) if hidden % 8 == 0 else (),
    )


CASES = [
    _residual(1, 576),
    _residual(1, 4096),
    _residual(512, 8192, torch.float32),
]
