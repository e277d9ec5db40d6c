"""Scores."""

from __future__ import annotations

import torch

from benchmarks.compiled.cases._case import Case, floats, integers, meta, size
from cmr.kernels.gpu import score as gpu

BLOCK = 32


def _state_scores(tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    states = meta(1, tokens, hidden, dtype=dtype)
    out = [floats(1, tokens) for _ in range(3)] + [floats(1, -(-tokens // BLOCK))]
    return Case(
        f"score.state_scores/{tokens}x{hidden} {str(dtype)[6:]}",
        lambda: gpu.state_scores(states, None, BLOCK, *out),
        launches=1,
        bytes=size(states, *out),
        flops=8 * states.numel(),
        wide=("state_scores_kernel",) if hidden % 8 == 0 else (),
        registers=96,
    )


def _surprise(tokens: int, vocabulary: int, dtype: torch.dtype, previous: bool = False) -> Case:
    logits = meta(1, tokens, vocabulary, dtype=dtype)
    before = meta(1, vocabulary, dtype=dtype) if previous else None
    losses = floats(1, tokens)
    return Case(
        f"score.surprise/{tokens}x{vocabulary} {str(dtype)[6:]}",
        lambda: gpu.surprise(logits, integers(1, tokens), before, losses),
        launches=1 if previous else 2,
        bytes=size(logits, before, losses) + 8 * tokens,
        flops=4 * logits.numel(),
        wide=("surprise_kernel",) if vocabulary % 8 == 0 else (),
        registers=96,
    )


def _hybrid_blocks(count: int, tokens: int, sample: int) -> Case:
    scores, references, weights = floats(count, 1, tokens), floats(count, sample), floats(count)
    out = floats(1, tokens), floats(1, -(-tokens // BLOCK))
    return Case(
        f"score.hybrid_blocks/{count}x{tokens} of {sample}",
        lambda: gpu.hybrid_blocks(scores, references, weights, None, BLOCK, *out),
        launches=1,
        bytes=size(scores, references, weights, *out),
        flops=2 * scores.numel() * sample.bit_length(),
        registers=96,
    )


CASES = [
    _state_scores(512, 576, torch.bfloat16),
    _state_scores(512, 4096, torch.bfloat16),
    _state_scores(512, 8192, torch.float32),
    _state_scores(512, 577, torch.float16),
    _surprise(512, 262144, torch.bfloat16),
    _surprise(512, 49157, torch.float32, previous=True),
    _hybrid_blocks(4, 512, 1024),
]
