"""Stored states blended into a layer's input, in one launch of a Triton kernel, in place.

`cmr.kernels.reweave_residual` is the specification.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import launch, next_power, strides
from cmr.kernels.gpu.attention import expect_dtype
from cmr.kernels.gpu.reweave_paged import readable_tokens

TILE_ELEMENTS = 8192
"""Elements of stored states that a program of 4 warps holds in registers at once."""


@triton.jit
def reweave_residual_kernel(
    p_states, p_store, p_table, p_stamps, p_created, p_positions, p_weight, p_query_mask,
    entries, temperature,
    stride_xb, stride_xs, stride_xd, stride_kn, stride_kt, stride_kd, stride_mb, stride_ms,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One token a program; its state stays in registers, each stored state is read once."""
    # In place: a program reads and writes one token's state and no other program's.
    i_token = tl.program_id(0).to(tl.int64)
    i_batch = tl.program_id(1).to(tl.int64)
    share = tl.load(p_weight + i_batch)
    reads = share > 0
    if p_query_mask is not None:
        reads &= tl.load(p_query_mask + i_batch * stride_mb + i_token * stride_ms) != 0
    high = tl.where(reads, entries * BLOCK, 0)
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < HIDDEN
    p_row = p_states + i_batch * stride_xb + i_token * stride_xs + o_h * stride_xd
    b_x = tl.load(p_row, mask=m_h, other=0.0).to(tl.float32)  # [H]
    norm = tl.maximum(tl.sqrt(tl.sum(b_x * b_x, 0)), 1e-12)
    # A running softmax: the largest logit so far, the sum of the weights, the weighted states.
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    b_acc = tl.zeros((BLOCK_H,), tl.float32)
    for start in range(0, high, BLOCK_N):
        o_t = start + tl.arange(0, BLOCK_N)
        b_slot, m_t = readable_tokens(
            p_table, p_stamps, p_created, p_positions, o_t, o_t < high, i_batch * entries, BLOCK
        )
        p_m = p_store + b_slot * stride_kn + (o_t % BLOCK) * stride_kt
        m_m = m_t[:, None] & m_h[None, :]
        p_m = p_m[:, None] + o_h[None, :] * stride_kd
        b_m = tl.load(p_m, mask=m_m, other=0.0).to(tl.float32)  # [N, H]
        b_norm = tl.maximum(tl.sqrt(tl.sum(b_m * b_m, 1)), 1e-12)
        b_logits = tl.sum(b_m * b_x[None, :], 1) / (b_norm * norm) / temperature
        b_logits = tl.where(m_t, b_logits, float("-inf"))
        best = tl.maximum(top, tl.max(b_logits, 0))
        # As long as nothing was readable the maximum is -inf, and -inf less -inf would be NaN.
        shift = tl.where(best == float("-inf"), 0.0, best)
        b_weight = tl.exp(b_logits - shift)
        keep = tl.exp(top - shift)
        total = total * keep + tl.sum(b_weight, 0)
        b_acc = b_acc * keep + tl.sum(b_m * b_weight[:, None], 0)
        top = best
    b_total = tl.zeros((BLOCK_H,), tl.float32) + total
    m_out = m_h & (b_total > 0)  # what read nothing is not written, and stays bit for bit
    b_recalled = b_acc / tl.where(b_total > 0, b_total, 1.0)
    b_out = (1.0 - share) * b_x + share * b_recalled
    tl.store(p_row, b_out.to(p_states.dtype.element_ty), mask=m_out)


def reweave_residual_paged(
    states: torch.Tensor,
    store: torch.Tensor,
    table: torch.Tensor,
    stamps: torch.Tensor,
    created: torch.Tensor,
    positions: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
    query_mask: torch.Tensor | None,
) -> None:
    """Launches `reweave_residual_kernel`, one program a token."""
    expect_dtype(states)
    batch, tokens, hidden = states.shape
    width = max(16, next_power(hidden))
    warps = 4 if width <= 2048 else 8
    launch(
        reweave_residual_kernel,
        (tokens, batch),
        device=states.device,
        warps=warps,
        p_states=states,
        p_store=store,
        p_table=table,
        p_stamps=stamps,
        p_created=created,
        p_positions=positions,
        p_weight=weight,
        p_query_mask=query_mask,
        entries=table.shape[1],
        temperature=temperature,
        **strides("stride_x", "bsd", states),
        **strides("stride_k", "ntd", store),
        **strides("stride_m", "bs", query_mask),
        HIDDEN=hidden,
        BLOCK=store.shape[1],
        BLOCK_N=max(1, min(32, TILE_ELEMENTS * warps // 4 // width)),
        BLOCK_H=width,
    )
