"""Attention received, as Triton kernels; `cmr.kernels.attention_received` is the specification."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, in_rows, launch, next_power, strides, target

LARGE = (64, 64)
"""Queries and keys of a tile in half precision."""
WIDE = (64, 32)
"""The same for heads of more than 64 features."""
SMALL = (32, 32)
"""The same in float32, which no matrix unit of NVIDIA's multiplies."""
FEATURES = 32
"""Features that are multiplied at a time in float32, without matrix units."""
COLUMNS = 256
"""Keys that a program of the last kernel averages over the heads."""


@triton.jit
def _product(
    p_q, p_k, m_s, m_l,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """q·k of a tile, some features at a time: whole rows of float32 overflow the registers."""
    o_d = tl.arange(0, BLOCK_D)
    b_x = tl.zeros([BLOCK_S, BLOCK_L], tl.float32)
    for start in range(0, HEAD, BLOCK_D):
        m_d = start + o_d < HEAD
        b_q = tl.load(
            p_q + (start + o_d)[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0
        )  # [BLOCK_S, BLOCK_D]
        b_k = tl.load(
            p_k + (start + o_d)[:, None], mask=m_l[None, :] & m_d[:, None], other=0.0
        )  # [BLOCK_D, BLOCK_L]
        b_x = tl.dot(b_q, b_k, b_x, input_precision="ieee")
    return b_x


@triton.jit
def _sees(o_s, o_l, m_key, p_mask, steps, length, IS_CAUSAL: tl.constexpr, IS_SELF: tl.constexpr):
    """Which key each query of a tile sees, and which is one at all."""  # [QUERIES, KEYS]
    m_sees = (o_s < steps)[:, None] & m_key[None, :]
    if IS_CAUSAL:
        m_sees = m_sees & (o_l[None, :] <= o_s[:, None] + (length - steps))
    if IS_SELF:  # padding is no query either
        m_query = tl.load(p_mask + o_s, mask=o_s < steps, other=0) != 0  # [QUERIES]
        m_sees = m_sees & m_query[:, None]
    return m_sees


@triton.jit
def attention_lse_kernel(
    p_query, p_key, p_mask, p_lse,
    heads, repeat, steps, length, scale,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_kl,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_L: tl.constexpr,
    IS_CAUSAL: tl.constexpr, IS_SELF: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of the logits of one tile of queries of one head; +inf where nothing is seen."""
    i_s = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_s = i_s * BLOCK_S + tl.arange(0, BLOCK_S)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < HEAD
    p_q = p_query + i_b * stride_qb + i_h * stride_qh + o_s.to(tl.int64)[:, None] * stride_qs
    m_s = o_s < steps
    # A row of queries stays in registers where it fits; float32 is multiplied in pieces below.
    if HEAD <= BLOCK_D:
        b_q = tl.load(
            p_q + o_d[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0
        )  # [BLOCK_S, BLOCK_D]
    p_k = p_key + i_b * stride_kb + (i_h // repeat) * stride_kh
    p_m = p_mask
    if p_mask is not None:
        p_m = p_mask + i_b * length
    b_max = tl.full([BLOCK_S], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_S], tl.float32)
    stop = length
    if IS_CAUSAL:
        stop = tl.minimum(length, (i_s + 1) * BLOCK_S + (length - steps))
    for start in range(0, stop, BLOCK_L):
        o_l = start + tl.arange(0, BLOCK_L)
        m_l = o_l < length
        p_tile = p_k + o_l.to(tl.int64)[None, :] * stride_kl
        if HEAD <= BLOCK_D:
            b_k = tl.load(
                p_tile + o_d[:, None], mask=m_l[None, :] & m_d[:, None], other=0.0
            )  # [BLOCK_D, BLOCK_L]
            b_x = tl.dot(b_q, b_k, input_precision="ieee")
        else:
            b_x = _product(p_q, p_tile, m_s, m_l, HEAD, BLOCK_D, BLOCK_S, BLOCK_L)
        m_key = m_l
        if p_mask is not None:
            m_key = m_l & (tl.load(p_m + o_l, mask=m_l, other=0) != 0)  # [BLOCK_L]
        m_sees = _sees(o_s, o_l, m_key, p_m, steps, length, IS_CAUSAL, IS_SELF)
        b_x = tl.where(m_sees, b_x * scale, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        # -inf less -inf is NaN: a row that has seen nothing yet is shifted by 0.
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_sum = b_sum * tl.exp(b_max - b_shift) + tl.sum(tl.exp(b_x - b_shift[:, None]), 1)
        b_max = b_new
    # +inf stands for "sees nothing, or is no query": by it the next kernel leaves a query out.
    b_lse = tl.where(
        b_max == float("-inf"), float("inf"), b_max + tl.log(tl.where(b_sum == 0, 1.0, b_sum))
    )
    b_lse = tl.where(b_sum == b_sum, b_lse, b_sum)  # a NaN stays one
    tl.store(p_lse + i_bh * steps + o_s, b_lse, mask=o_s < steps)


@triton.jit
def attention_received_kernel(
    p_query, p_key, p_mask, p_lse, p_partial,
    heads, repeat, steps, length, scale,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_kl,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_L: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Mean probability of one tile of keys over the queries of one head that see them."""
    i_l = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_l = i_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D)
    m_l, m_d = o_l < length, o_d < HEAD
    p_k = p_key + i_b * stride_kb + (i_h // repeat) * stride_kh
    p_k += o_l.to(tl.int64)[None, :] * stride_kl
    if HEAD <= BLOCK_D:
        b_k = tl.load(
            p_k + o_d[:, None], mask=m_l[None, :] & m_d[:, None], other=0.0
        )  # [BLOCK_D, BLOCK_L]
    b_received = tl.zeros([BLOCK_L], tl.float32)
    b_seen = tl.zeros([BLOCK_L], tl.float32)
    # A program owns its keys and walks over the queries, so that no two add to one sum. Queries in
    # front of the first key see none of the tile.
    first = 0
    if IS_CAUSAL:
        first = tl.maximum(i_l * BLOCK_L - (length - steps), 0) // BLOCK_S * BLOCK_S
    p_q = p_query + i_b * stride_qb + i_h * stride_qh
    for start in range(first, steps, BLOCK_S):
        o_s = start + tl.arange(0, BLOCK_S)
        m_s = o_s < steps
        p_tile = p_q + o_s.to(tl.int64)[:, None] * stride_qs
        if HEAD <= BLOCK_D:
            b_q = tl.load(
                p_tile + o_d[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0
            )  # [BLOCK_S, BLOCK_D]
            b_x = tl.dot(b_q, b_k, input_precision="ieee")
        else:
            b_x = _product(p_tile, p_k, m_s, m_l, HEAD, BLOCK_D, BLOCK_S, BLOCK_L)
        b_lse = tl.load(p_lse + i_bh * steps + o_s, mask=m_s, other=float("inf"))  # [BLOCK_S]
        m_sees = (b_lse != float("inf"))[:, None]  # who sees nothing, or is no query, has +inf
        if IS_CAUSAL:
            m_sees = m_sees & (o_l[None, :] <= o_s[:, None] + (length - steps))
        # The log-sum-exp is known from the first kernel: a probability needs no further maximum.
        b_p = tl.exp(b_x * scale - b_lse[:, None])
        if p_mask is not None:
            b_p = tl.where(b_p == b_p, b_p, 0.0)
        b_received += tl.sum(tl.where(m_sees, b_p, 0.0), 0)
        b_seen += tl.sum(tl.where(m_sees, 1.0, 0.0) + tl.zeros([BLOCK_S, BLOCK_L], tl.float32), 0)
    b_received = b_received / tl.maximum(b_seen, 1.0)
    if p_mask is not None:  # padding receives nothing
        m_key = tl.load(p_mask + i_b * length + o_l, mask=m_l, other=0) != 0  # [BLOCK_L]
        b_received = tl.where(m_key, b_received, 0.0)
    tl.store(p_partial + i_bh * length + o_l, b_received, mask=m_l)


@triton.jit
def mean_over_heads_kernel(p_partial, p_received, heads, length, BLOCK: tl.constexpr):
    """Mean of [B, H, L] over H, one tile of L a program."""
    i_b = tl.program_id(1).to(tl.int64)
    o_l = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_h in range(0, heads):
        p_row = p_partial + (i_b * heads + i_h) * length
        b_sum += tl.load(p_row + o_l, mask=o_l < length, other=0.0)  # [BLOCK]
    tl.store(p_received + i_b * length + o_l, b_sum / heads, mask=o_l < length)


def attention_received(
    query: torch.Tensor,
    key: torch.Tensor,
    key_mask: torch.Tensor | None,
    scale: float,
    is_causal: bool,
    lse: torch.Tensor,
    partial: torch.Tensor,
    received: torch.Tensor,
) -> None:
    """Launches the log-sum-exp, the sums a head and their mean: three kernels."""
    batch, heads, steps, width = query.shape
    groups, length = key.shape[1:3]
    if steps == 0 or heads == 0:
        received.zero_()
        return
    query, key = in_rows(query), in_rows(key)
    mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    single = query.dtype == torch.float32
    # On AMD the masks of larger tiles, or of a pipelined loop, overflow the scalar registers.
    hip = target(query.device).backend == "hip"
    small = single or (hip and width > 64)
    rows, columns = SMALL if small else LARGE if width <= 64 else WIDE
    options: dict[str, Any] = {
        "device": query.device,
        "warps": 8 if hip and small else 4,
        "stages": 1 if hip else 2,
    }
    shared: dict[str, Any] = {
        "p_query": query,
        "p_key": key,
        "p_mask": mask,
        "p_lse": lse,
        "heads": heads,
        "repeat": heads // groups,
        "steps": steps,
        "length": length,
        "scale": scale,
        **strides("stride_q", "bhs", query),
        **strides("stride_k", "bhl", key),
        "HEAD": width,
        "BLOCK_D": FEATURES if single and (width > 128 or not hip) else max(16, next_power(width)),
        "BLOCK_S": rows,
        "BLOCK_L": columns,
        "IS_CAUSAL": is_causal,
    }
    launch(
        attention_lse_kernel,
        (cdiv(steps, rows), batch * heads),
        **options,
        IS_SELF=mask is not None and steps == length,
        **shared,
    )
    launch(
        attention_received_kernel,
        (cdiv(length, columns), batch * heads),
        **options,
        p_partial=partial,
        **shared,
    )
    launch(
        mean_over_heads_kernel,
        (cdiv(length, COLUMNS), batch),
        **options,
        p_partial=partial,
        p_received=received,
        heads=heads,
        length=length,
        BLOCK=COLUMNS,
    )
