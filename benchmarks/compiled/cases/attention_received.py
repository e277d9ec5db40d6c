"""Attention that each token receives."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, meta, size
from cmr.kernels.gpu import attention_received as gpu


def _attention_received(tokens: int, width: int, dtype: torch.dtype, masked: bool = False) -> Case:
    query, key = meta(1, 9, tokens, width, dtype=dtype), meta(1, 3, tokens, width, dtype=dtype)
    mask = meta(1, tokens, dtype=torch.bool) if masked else None
    scratch, out = [floats(1, 9, tokens) for _ in range(2)], floats(1, tokens)
    kernels = ("attention_lse_kernel", "attention_received_kernel")
    return Case(
        f"attention_received.attention_received/9x{tokens}x{width} {str(dtype)[6:]}",
        lambda: gpu.attention_received(query, key, mask, 0.1, True, *scratch, out),
        launches=3,
        bytes=size(query, key, mask, *scratch, *scratch, out),
        flops=2 * 9 * tokens * tokens * width,  # the visible half of two products
        matrix=() if dtype == torch.float32 else kernels,
        wide=kernels if width % 8 == 0 else (),
    )


CASES = [
    _attention_received(512, 64, torch.bfloat16),
    _attention_received(512, 100, torch.float16, masked=True),
    _attention_received(512, 256, torch.bfloat16),
    _attention_received(512, 128, torch.float32),
]
