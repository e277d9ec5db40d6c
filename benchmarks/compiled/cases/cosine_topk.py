"""Cosine top-k over entries."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.cosine_topk import new_partial
from cmr.kernels.gpu import cosine_topk as gpu


def _cosine_topk(
    queries: int, count: int, hidden: int, k: int, dtype: torch.dtype, normed: bool = False
) -> Case:
    query, entries = meta(queries, hidden), meta(count, hidden, dtype=dtype)
    scale = floats(count) if dtype.itemsize == 1 else None
    inverse = None if normed else floats(count)
    visible = meta(queries, count, dtype=torch.bool) if normed else None
    partial = new_partial(query, queries, count, k)
    out = floats(queries, k), integers(queries, k)
    tiles = -(-queries // 64)
    return Case(
        f"cosine_topk.cosine_topk/{queries}x{count}x{hidden} k{k} {str(dtype)[6:]}",
        lambda: gpu.cosine_topk(query, entries, inverse, visible, 0.1, scale, partial, *out),
        launches=2,
        bytes=tiles * size(entries, scale, inverse)
        + size(query, visible, *out)
        + 2 * size(partial),
        flops=2 * queries * count * hidden,
        matrix=("cosine_partial_kernel",) if dtype != torch.float32 else (),
        wide=("cosine_partial_kernel",) if hidden % 16 == 0 else (),
    )


CASES = [
    _cosine_topk(1, 65536, 576, 16, torch.bfloat16),
    _cosine_topk(64, 65536, 576, 64, torch.bfloat16, normed=True),
    _cosine_topk(32, 65536, 576, 16, torch.float32),
    _cosine_topk(32, 65536, 576, 16, torch.int8),
    _cosine_topk(16, 65536, 577, 64, torch.float8_e4m3fn),
]
