"""Writes into the ring."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import ring_write as gpu

SLOTS, BLOCK = 4096, 32


def _heads(
    heads: int, width: int, dtype: torch.dtype, rotary: int | None = None, values: bool = True
) -> Case:
    count, tokens = 16, 16 * BLOCK - 12
    store = meta(SLOTS, heads, BLOCK, width, dtype=dtype)
    keys = meta(1, heads, tokens, width, dtype=dtype)
    value_store, new = (store, keys) if values else (None, None)
    turn = (floats(1, tokens, rotary), floats(1, tokens, rotary)) if rotary else (None, None)
    return Case(
        f"ring_write.ring_write_heads/{heads}x{width} of {rotary} {str(dtype)[6:]}",
        lambda: gpu.ring_write_heads(
            store, value_store, integers(count), integers(count), keys, new, *turn
        ),
        launches=1,
        bytes=2 * size(keys, new) + size(*turn),
        flops=6 * keys.numel() if rotary else 0,
        wide=("ring_write_heads_kernel",) if width % 8 == 0 else (),
        registers=128,
    )


def _index(hidden: int, dtype: torch.dtype, states: torch.dtype = torch.bfloat16) -> Case:
    count, tokens = 16, 16 * BLOCK - 12
    index = meta(SLOTS, BLOCK, hidden, dtype=dtype)
    scale = None if dtype.is_floating_point and dtype.itemsize > 1 else floats(SLOTS, BLOCK)
    text = meta(1, tokens, hidden, dtype=states)
    return Case(
        f"ring_write.ring_write_index/{hidden} {str(dtype)[6:]}",
        lambda: gpu.ring_write_index(index, scale, integers(count), integers(count), text),
        launches=1,
        bytes=size(text) + text.numel() * dtype.itemsize,
        flops=4 * text.numel(),
        wide=("ring_write_index_kernel",) if hidden % 8 == 0 else (),
        registers=128,
    )


CASES = [
    _heads(3, 64, torch.bfloat16, 64),
    _heads(8, 128, torch.bfloat16, 128),
    _heads(4, 256, torch.float32, 64),
    _heads(5, 100, torch.float16, 50),
    _heads(1, 4096, torch.bfloat16, values=False),
    _index(576, torch.bfloat16),
    _index(577, torch.float32, torch.float32),
    _index(4096, torch.int8),
    _index(8192, torch.float8_e4m3fn),
]
