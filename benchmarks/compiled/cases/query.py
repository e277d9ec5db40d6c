"""Tokens on their way into a query."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu.search import query as gpu

TOKENS = 16


def _write_query(hidden: int, dtype: torch.dtype, width: int | None = None) -> Case:
    states, out = (meta(1, TOKENS, hidden, dtype=dtype) for _ in range(2))
    told = meta(1, TOKENS, dtype=torch.bool), integers(1, TOKENS)
    places = integers(1, TOKENS), integers(1, TOKENS), meta(1, TOKENS, dtype=torch.bool)
    metric = (None,) * 4
    if width is not None:
        metric = (
            floats(hidden),
            floats(hidden, width),
            floats(TOKENS, hidden),
            floats(TOKENS, width),
        )
    read = 2 * size(metric[1])  # once for each of the products
    return Case(
        f"search.query.write_query/{hidden} of {width} {str(dtype)[6:]}",
        lambda: gpu.write_query(states, *told, 1, *metric, out, *places),
        launches=1 if width is None else 2,
        bytes=size(states, out, *told, *places) + read,
        flops=4 * TOKENS * hidden * (width or 1),
    )


CASES = [
    _write_query(576, torch.bfloat16, 300),
    _write_query(4096, torch.bfloat16, 600),
    _write_query(577, torch.float32),
    _write_query(8192, torch.float16),
]
