"""Attention with its log-sum-exp."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, meta, size
from cmr.kernels.gpu import attention as gpu

KERNEL = "attention_kernel"


def _whole(
    heads: tuple[int, int],
    tokens: int,
    width: int,
    dtype: torch.dtype,
    softcap: float | None = None,
) -> Case:
    count, groups = heads
    query = meta(1, tokens, count, width, dtype=dtype).transpose(1, 2)
    key, value = (meta(1, groups, tokens, width, dtype=dtype) for _ in range(2))
    out = meta(1, tokens, count, width, dtype=dtype).transpose(1, 2)
    lse = floats(1, count, tokens)
    half = dtype != torch.float32
    return Case(
        f"attention.attention_with_lse/{count}:{groups}x{tokens}x{width} {str(dtype)[6:]}",
        lambda: gpu.attention_with_lse(
            query, key, value, None, True, width**-0.5, softcap, out, lse
        ),
        launches=1,
        bytes=size(query, key, value, out, lse),
        flops=2 * count * tokens * tokens * width,
        matrix=(KERNEL,) if half else (),
        wide=(KERNEL,),
    )


def _split(
    batch: int, heads: tuple[int, int], seen: int, width: int, parts: int, masked: bool
) -> Case:
    count, groups = heads
    query = meta(batch, 1, count, width).transpose(1, 2)
    key, value = (meta(batch, groups, seen, width) for _ in range(2))
    mask = meta(batch, 1, 1, seen, dtype=torch.bool) if masked else None
    out, lse = floats(parts, batch, count, 1, width), floats(parts, batch, count, 1)
    return Case(
        f"attention.attention_partials/{batch}x{count}:{groups}x{seen}x{width} in {parts}",
        lambda: gpu.attention_partials(query, key, value, mask, False, width**-0.5, None, out, lse),
        launches=1,
        bytes=size(query, key, value, mask, out, lse),
        flops=4 * batch * count * seen * width,
        matrix=(KERNEL,),
        wide=(KERNEL,),
    )


CASES = [
    _split(1, (9, 3), 516, 64, 4, masked=False),
    _split(8, (32, 8), 516, 128, 4, masked=True),
    _whole((32, 8), 512, 128, torch.bfloat16),
    _whole((8, 4), 512, 256, torch.float16, softcap=50.0),
    _whole((9, 3), 512, 64, torch.float32),
]
