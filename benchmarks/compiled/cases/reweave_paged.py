"""Reading chosen blocks, merged with local attention."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import reweave_paged as gpu

BLOCK = 32
ENTRIES = 8
SLOTS = 4096


def _paged(
    batch: int,
    heads: tuple[int, int],
    tokens: int,
    width: int,
    parts: int,
    dtype: torch.dtype = torch.bfloat16,
    softcap: float | None = None,
    block: int = BLOCK,
) -> Case:
    count, groups = heads
    query = meta(batch, tokens, count, width, dtype=dtype).transpose(1, 2)
    stores = [meta(SLOTS, groups, block, width, dtype=dtype) for _ in range(2)]
    table, stamps = integers(batch, ENTRIES), integers(batch, ENTRIES)
    created, positions, bias = integers(SLOTS), integers(SLOTS, block), floats(batch)
    if parts > 1:
        local = floats(parts, batch, count, tokens, width)
    else:
        local = meta(batch, tokens, count, width, dtype=dtype).transpose(1, 2).unsqueeze(0)
    lse, gate = floats(parts, batch, count, tokens), floats(batch, count, tokens)
    turn = [floats(batch, tokens, width) for _ in range(2)]
    seen = meta(batch, tokens, dtype=torch.bool) if tokens > 1 else None
    out = meta(batch, tokens, count, width, dtype=dtype).transpose(1, 2)
    read = batch * ENTRIES * block
    half = dtype != torch.float32
    return Case(
        f"reweave_paged.reweave_paged/{batch}x{count}:{groups}x{tokens}x{width} {str(dtype)[6:]}",
        lambda: gpu.reweave_paged(
            query, *stores, table, stamps, created, positions, bias, local, lse, *turn, seen,
            width**-0.5, softcap, out, gate,
        ),
        launches=1,
        bytes=size(query, table, stamps, bias, local, lse, *turn, seen, out, gate)
        + read * (8 + 2 * groups * width * query.element_size()),
        flops=4 * read * count * tokens * width,
        matrix=("reweave_kernel",) if half else (),
        wide=("reweave_kernel",),
    )  # fmt: skip


CASES = [
    _paged(1, (9, 3), 1, 64, 4),
    _paged(8, (32, 8), 1, 128, 4),
    _paged(1, (32, 8), 512, 128, 1),
    _paged(1, (8, 4), 64, 256, 1, torch.float16, softcap=50.0),
    _paged(1, (9, 3), 64, 64, 1, torch.float32),
]
