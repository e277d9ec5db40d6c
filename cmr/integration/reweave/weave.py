"""Local attention and memory woven together: what a layer computes while it reads memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.integration.reweave.recall import LayerBlocks, LayerRows
from cmr.integration.reweave.scratch import StepTensors
from cmr.kernels import implementation
from cmr.kernels.attention import attention_with_lse
from cmr.kernels.attention_partials import attention_partials
from cmr.kernels.reference.rotary import rotate
from cmr.kernels.reweave import reweave_attention
from cmr.kernels.reweave_paged import reweave_paged

KEYS_PER_PART = 128
"""Local keys that a program reads at least while decoding on a GPU."""
MOST_PARTS = 16
FEW_PROGRAMS = 128
"""Rows and heads below which the keys are divided among programs, to keep a GPU busy."""


@dataclass(frozen=True)
class LayerMemory:
    """What one layer reads in one forward.

    Attributes:
        held: the chosen blocks, in place or copied.
        bias: `[batch]` float32, added to the memory's logits.
        query_mask: `[batch, tokens]` bool, False for tokens that must not read; None for all.
        turn: cosine and sine `[batch, tokens, rotary_dim]` float32 that rotate the query to where
            memory is read; None leaves it.
        weights: whether the local attention weights are wanted, too.
    """

    held: LayerBlocks | LayerRows
    bias: torch.Tensor
    query_mask: torch.Tensor | None
    turn: tuple[torch.Tensor, torch.Tensor] | None
    weights: bool = False


def weave(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    memory: LayerMemory,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    into: StepTensors | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the local window and the chosen blocks.

    Two launches where blocks are read in place. With `into` nothing is allocated then, and nothing
    waits for the device.

    Args:
        query: `[batch, heads, tokens, head_dim]`, rotated.
        key: `[batch, kv_heads, seen, head_dim]`, rotated.
        value: the same shape.
        mask: None, bool or additive, broadcastable to `[batch, heads, tokens, seen]`.
        memory: what to read.
        is_causal: a token sees no later one.
        scale: of the logits.
        softcap: of the logits, or None.
        into: where to write; None: new tensors.

    Returns:
        `[batch, heads, tokens, head_dim]` and the share of attention that went to memory,
        `[batch, heads, tokens]` float32.
    """
    if into is not None and into.local.ndim == 5:
        local, lse = attention_partials(
            query, key, value, mask, scale=scale, softcap=softcap, out=into.local, lse=into.lse
        )
    else:
        local, lse = attention_with_lse(
            query,
            key,
            value,
            mask=mask,
            is_causal=is_causal,
            scale=scale,
            softcap=softcap,
            out=None if into is None else into.local,
            lse=None if into is None else into.lse,
        )
    held = memory.held
    if isinstance(held, LayerRows):
        return reweave_attention(
            query if memory.turn is None else rotate(query, *memory.turn),
            held.keys,
            held.values,
            held.mask,
            local,
            lse,
            bias=memory.bias,
            scale=scale,
            softcap=softcap,
            query_mask=memory.query_mask,
        )
    return reweave_paged(
        query,
        held.keys,
        held.values,
        held.table,
        held.stamps,
        held.created,
        held.positions,
        memory.bias,
        local,
        lse,
        turn=memory.turn,
        query_mask=memory.query_mask,
        scale=scale,
        softcap=softcap,
        out=None if into is None else into.out,
        gate=None if into is None else into.gate,
    )


def parts(query: torch.Tensor, key: torch.Tensor) -> int:
    """Parts of the local keys that a decoding step's programs share; 1 where there are none."""
    if implementation(query.device).name != "triton":
        return 1
    programs = key.shape[0] * key.shape[1]
    wanted = min(MOST_PARTS, -(-FEW_PROGRAMS // programs), -(-key.shape[2] // KEYS_PER_PART))
    return max(1, wanted)
