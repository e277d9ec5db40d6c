"""Reading chosen blocks, merged with local attention or blended into states."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import reweave as gpu
from cmr.kernels.gpu import reweave_residual as residual

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
        f"reweave.reweave_paged/{batch}x{count}:{groups}x{tokens}x{width} {str(dtype)[6:]}",
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


def _residual(tokens: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    states, store = meta(1, tokens, hidden, dtype=dtype), meta(SLOTS, BLOCK, hidden, dtype=dtype)
    table, stamps = integers(1, ENTRIES), integers(1, ENTRIES)
    created, positions, weight = integers(SLOTS), integers(SLOTS, BLOCK), floats(1)
    read = ENTRIES * BLOCK
    return Case(
        f"reweave_residual.reweave_residual_paged/{tokens}x{hidden} {str(dtype)[6:]}",
        lambda: residual.reweave_residual_paged(
            states, store, table, stamps, created, positions, weight, 1.0, None
        ),
        launches=1,
        bytes=2 * size(states) + size(table, stamps) + read * (8 + hidden * store.element_size()),
        flops=6 * read * tokens * hidden,
        wide=("reweave_residual_kernel",) if hidden % 8 == 0 else (),
    )


CASES = [
    _paged(1, (9, 3), 1, 64, 4),
    _paged(8, (32, 8), 1, 128, 4),
    _paged(1, (32, 8), 512, 128, 1),
    _paged(1, (8, 4), 64, 256, 1, torch.float16, softcap=50.0),
    _paged(1, (9, 3), 64, 64, 1, torch.float32),
    _residual(1, 576),
    _residual(1, 4096),
    _residual(512, 8192, torch.float32),
]
