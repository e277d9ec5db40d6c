"""The numerical operations of a memory. They know tensors only, nothing of what lies above.

Each of `OPERATIONS` is a Triton kernel on a GPU and plain PyTorch, its specification, everywhere
else; `implementation` says which one runs and why. The other functions are plain PyTorch: parts of
which the specifications are made.
"""

from __future__ import annotations

from cmr.kernels._ops import REGISTERED
from cmr.kernels.attention import attention_partials, attention_with_lse
from cmr.kernels.cosine_topk import cosine_rerank, cosine_topk
from cmr.kernels.dispatch import Implementation, implementation, using
from cmr.kernels.maxsim import block_maxima, maxsim_select, rerank_blocks
from cmr.kernels.ranges import shown
from cmr.kernels.reference.attention import attention_with_lse_plain
from cmr.kernels.reference.maxsim import maxsim_topk, passages, standardise
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.reference.score import (
    calibrate,
    hybrid,
    inverse_norm,
    norm,
    pool_blocks,
    variance,
)
from cmr.kernels.reweave import (
    reweave_attention,
    reweave_paged,
    reweave_residual,
    reweave_residual_paged,
)
from cmr.kernels.ring_write import (
    ring_link,
    ring_reserve,
    ring_write_heads,
    ring_write_index,
)
from cmr.kernels.score import attention_received, hybrid_blocks, state_scores, surprise

OPERATIONS = tuple(sorted(REGISTERED))
"""Names of all operations, as `torch.ops.cmr` has them."""

__all__ = [
    "OPERATIONS",
    "Implementation",
    "attention_partials",
    "attention_received",
    "attention_with_lse",
    "attention_with_lse_plain",
    "block_maxima",
    "calibrate",
    "cosine_rerank",
    "cosine_topk",
    "hybrid",
    "hybrid_blocks",
    "implementation",
    "inverse_norm",
    "maxsim_select",
    "maxsim_topk",
    "norm",
    "passages",
    "pool_blocks",
    "quantise_rows",
    "rerank_blocks",
    "reweave_attention",
    "reweave_paged",
    "reweave_residual",
    "reweave_residual_paged",
    "ring_link",
    "ring_reserve",
    "ring_write_heads",
    "ring_write_index",
    "shown",
    "standardise",
    "state_scores",
    "surprise",
    "using",
    "variance",
]
