"""Block maxima and the choice of passages."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import maxsim as gpu

BLOCK = 32


def _block_maxima(
    tokens: int, blocks: int, hidden: int, dtype: torch.dtype, slots: int = 0
) -> Case:
    codes = dtype.itemsize == 1
    query = meta(1, tokens, hidden, dtype=torch.float16 if codes else dtype)
    index = meta(blocks, BLOCK, hidden, dtype=dtype)
    positions, session, sessions = integers(blocks, BLOCK), integers(blocks), integers(1)
    scale = floats(blocks, BLOCK) if codes else None
    chosen = integers(1, slots) if slots else None
    out = floats(1, tokens, slots or blocks)
    read = slots or blocks
    return Case(
        f"maxsim.block_maxima/{tokens}x{read}x{BLOCK}x{hidden} {str(dtype)[6:]}"
        + (" of slots" if slots else ""),
        lambda: gpu.block_maxima(query, index, positions, scale, session, sessions, chosen, out),
        launches=1,
        bytes=size(query, index, positions, session, scale, out) * read // blocks,
        flops=2 * tokens * read * BLOCK * hidden,
        matrix=("block_maxima_kernel",) if dtype != torch.float32 else (),
        wide=("block_maxima_kernel",) if hidden % 16 == 0 else (),
    )


CASES = [
    _block_maxima(1, 2048, 576, torch.bfloat16),
    _block_maxima(64, 2048, 4096, torch.bfloat16),
    _block_maxima(32, 2048, 576, torch.float32),
    _block_maxima(32, 2048, 576, torch.int8),
    _block_maxima(32, 2048, 577, torch.float8_e4m3fn),
    _block_maxima(32, 2048, 576, torch.bfloat16, slots=64),
]
