"""Deviations from what is usual."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import standardise as gpu


def _standardise(tokens: int, blocks: int, passages: bool) -> Case:
    maxima, out = floats(1, tokens, blocks), floats(1, tokens, blocks)
    visible = meta(1, blocks, dtype=torch.bool)
    successor = integers(blocks) if passages else None
    return Case(
        f"standardise.standardise/{tokens}x{blocks}" + (" passages" if passages else ""),
        lambda: gpu.standardise(maxima, visible, successor, 8.0, out),
        launches=1,
        bytes=size(maxima, visible, successor, out),
        flops=12 * maxima.numel(),
        wide=() if passages else ("standardise_kernel",),
        registers=128,
    )


CASES = [_standardise(128, 2048, passages=True), _standardise(4, 2048, passages=False)]
