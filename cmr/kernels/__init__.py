"""The numerical operations of a memory. They know tensors only, nothing of what lies above."""

from __future__ import annotations

from cmr.kernels.reference.attention import attention_with_lse, attention_with_lse_plain
from cmr.kernels.reference.cosine_topk import cosine_topk
from cmr.kernels.reference.maxsim import block_maxima, maxsim_topk, passages, standardise
from cmr.kernels.reference.reweave import reweave_attention, reweave_residual
from cmr.kernels.reference.ring_write import ring_write, ring_write_index
from cmr.kernels.reference.score import (
    attention_received,
    calibrate,
    hybrid,
    inverse_norm,
    norm,
    pool_blocks,
    surprise,
    variance,
)

OPERATIONS = (
    "attention_received",
    "attention_with_lse",
    "block_maxima",
    "calibrate",
    "cosine_topk",
    "hybrid",
    "inverse_norm",
    "maxsim_topk",
    "norm",
    "passages",
    "pool_blocks",
    "reweave_attention",
    "reweave_residual",
    "ring_write",
    "ring_write_index",
    "standardise",
    "surprise",
    "variance",
)


def implementation() -> dict[str, str]:
    """For each operation, which implementation runs and why."""
    return {name: "reference (PyTorch): no Triton kernel in this version" for name in OPERATIONS}


__all__ = [
    "attention_received",
    "attention_with_lse",
    "attention_with_lse_plain",
    "block_maxima",
    "calibrate",
    "cosine_topk",
    "hybrid",
    "implementation",
    "inverse_norm",
    "maxsim_topk",
    "norm",
    "passages",
    "pool_blocks",
    "reweave_attention",
    "reweave_residual",
    "ring_write",
    "ring_write_index",
    "standardise",
    "surprise",
    "variance",
]
