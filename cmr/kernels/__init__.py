"""The numerical operations of a memory. They know tensors only, nothing of what lies above.

Each of `OPERATIONS` is a Triton kernel on a GPU (`gpu/`) and plain PyTorch, its specification,
everywhere else; `implementation` says which one runs and why. `x` is the public function, `x_` the
operation as PyTorch knows it and `x_plain` its specification, all in one file. The other functions
and `reference/` are plain PyTorch, of which the specifications and the layers above are made.

Where a dtype or a shape does not fit, every public function raises a TypeError or a ValueError that
names the tensor, before it writes anything. What else it raises stands where it is defined.
"""

from __future__ import annotations

from cmr.kernels.attention import attention_with_lse, attention_with_lse_plain
from cmr.kernels.attention_partials import attention_partials
from cmr.kernels.attention_received import attention_received
from cmr.kernels.cosine_topk import cosine_topk
from cmr.kernels.cover import cover
from cmr.kernels.dispatch import REGISTERED, Implementation, implementation, using
from cmr.kernels.maxsim import block_maxima
from cmr.kernels.ranges import shown
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.reference.score import calibrate, pool_blocks
from cmr.kernels.reweave import reweave_attention
from cmr.kernels.reweave_paged import reweave_paged
from cmr.kernels.reweave_residual import reweave_residual_paged
from cmr.kernels.ring_link import ring_link
from cmr.kernels.ring_write import inverse_norm, ring_write_heads, ring_write_index
from cmr.kernels.score import hybrid_blocks, state_scores, surprise
from cmr.kernels.select import best_passages, maxsim_select
from cmr.kernels.standardise import passages, standardise
from cmr.kernels.words import words

OPERATIONS = tuple(sorted(REGISTERED))
"""Names of all operations, as `torch.ops.cmr` has them."""

__all__ = [
    "OPERATIONS",
    "Implementation",
    "attention_partials",
    "attention_received",
    "attention_with_lse",
    "attention_with_lse_plain",
    "best_passages",
    "block_maxima",
    "calibrate",
    "cosine_topk",
    "cover",
    "hybrid_blocks",
    "implementation",
    "inverse_norm",
    "maxsim_select",
    "passages",
    "pool_blocks",
    "quantise_rows",
    "reweave_attention",
    "reweave_paged",
    "reweave_residual_paged",
    "ring_link",
    "ring_write_heads",
    "ring_write_index",
    "shown",
    "standardise",
    "state_scores",
    "surprise",
    "using",
    "words",
]
