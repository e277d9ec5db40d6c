"""Attention with its log-sum-exp in Triton; `cmr.kernels.attention` specifies it.

The queries of all heads that share keys make the rows of one tile: row r is token r // REPEAT and
head r % REPEAT of the group, so that a decode step fills a tile of the matrix unit with its heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from cmr.errors import KernelError
from cmr.kernels.attention_partials import part_size
from cmr.kernels.gpu._launch import cdiv, launch, next_power, strides, target


class Tile(NamedTuple):
    """How a launch cuts its work."""

    rows: int
    keys: int
    warps: int
    stages: int


def tile(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """The tile for `rows` queries that share keys, of `width` features (a power of two)."""
    # The choices hold what `benchmarks.compiled` gates: no register spills on any architecture.
    if dtype == torch.float32:
        return Tile(16, 16, 4, 2) if rows <= 16 else Tile(32, 16, 8, 2)
    if rows <= 16:
        return Tile(16, 32 if width > 128 else 64, 4, 2)
    if width > 128:
        hopper = target(device).arch in (90, 100)  # whose matrix unit wants 64 rows
        return Tile(64, 32, 8, 2) if hopper and rows > 32 else Tile(32, 32, 4, 2)
    if rows <= 64:
        return Tile(max(32, next_power(rows)), 64 if width <= 64 else 32, 4, 2)
    return Tile(128, 32, 8, 2) if width > 64 else Tile(64, 64, 4, 2)


@triton.jit
def cap(b_x, softcap):
    """`softcap * tanh(b_x / softcap)`, without cancellation near 0."""
    b_y = b_x / softcap
    b_e = tl.exp(-2.0 * tl.abs(b_y))
    b_far = (1.0 - b_e) / (1.0 + b_e)
    b_far = tl.where(b_y < 0, -b_far, b_far)
    # Near 0 the quotient above loses its digits to 1 - exp(-small): the series has them.
    b_s = b_y * b_y
    b_series = 2 / 15 + b_s * (-17 / 315 + b_s * (62 / 2835))
    b_near = b_y * (1.0 + b_s * (-1 / 3 + b_s * b_series))
    return softcap * tl.where(b_s < 0.0625, b_near, b_far)


@triton.jit
def absorb(b_logits, b_value, b_max, b_sum, b_acc):
    """One tile of keys into the running maximum, sum and weighted values of each row."""
    b_new = tl.maximum(b_max, tl.max(b_logits, 1))
    # A row that has seen nothing yet has the maximum -inf, and -inf less -inf is NaN: it is shifted
    # by 0 instead, so that its weights are exp(-inf) = 0.
    b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_weight = tl.exp(b_logits - b_shift[:, None])
    b_keep = tl.exp(b_max - b_shift)
    b_sum = b_sum * b_keep + tl.sum(b_weight, 1)
    b_acc = b_acc * b_keep[:, None]
    # Weights go to the values' dtype, as the matrix unit wants both alike; the sum stays float32.
    # "ieee": float32 inputs are multiplied as float32, not as the 10 bits of tf32.
    b_acc = tl.dot(b_weight.to(b_value.dtype), b_value, b_acc, input_precision="ieee")
    return b_new, b_sum, b_acc


@triton.jit
def finish(b_max, b_sum, b_acc):
    """Weighted mean and log-sum-exp; 0 and -inf for a row that saw nothing."""
    b_seen = b_sum > 0
    b_total = tl.where(b_seen, b_sum, 1.0)
    b_out = b_acc / b_total[:, None]
    b_lse = tl.where(b_seen, b_max + tl.log(b_total), float("-inf"))
    return b_out, b_lse


@triton.jit
def attention_kernel(
    p_query, p_key, p_value, p_mask, p_out, p_lse,
    steps, length, size, groups, scale, softcap,
    stride_qb, stride_qh, stride_qs, stride_qd,
    stride_kb, stride_kg, stride_kn, stride_kd,
    stride_vb, stride_vg, stride_vn, stride_vd,
    stride_mb, stride_mh, stride_ms, stride_mn,
    stride_op, stride_ob, stride_oh, stride_os, stride_od,
    REPEAT: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr,
    HIDES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A tile of rows of one group, against one range of `size` keys."""
    # No two programs share an output row: the first axis cuts the rows of a group, the second is a
    # row of the batch and a group, the third a range of the keys with results of its own.
    i_pair = tl.program_id(1)
    i_part = tl.program_id(2)
    # int64 before a stride is multiplied in: a store may have more than 2**31 elements.
    i_batch = (i_pair // groups).to(tl.int64)
    i_group = (i_pair % groups).to(tl.int64)
    o_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_s = (o_row // REPEAT).to(tl.int64)
    o_h = i_group * REPEAT + o_row % REPEAT
    m_row = o_s < steps
    o_d = tl.arange(0, BLOCK_D)
    o_e = tl.arange(0, BLOCK_E)
    p_row = p_query + i_batch * stride_qb + o_h * stride_qh + o_s * stride_qs
    m_q = m_row[:, None] & (o_d < D)[None, :]
    b_q = tl.load(p_row[:, None] + o_d[None, :] * stride_qd, mask=m_q, other=0.0)  # [M, D]
    p_k = p_key + i_batch * stride_kb + i_group * stride_kg
    p_v = p_value + i_batch * stride_vb + i_group * stride_vg
    low = i_part * size
    high = tl.minimum(low + size, length)
    b_last = length - steps + o_s  # [M], the last key that a causal row sees
    if CAUSAL:
        # Keys behind what the tile's last row sees are not read at all: half of a square's work.
        last = (tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // REPEAT
        high = tl.minimum(high, length - steps + tl.minimum(last, steps - 1) + 1)
    b_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_acc = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for start in range(low, high, BLOCK_N):
        o_n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        m_n = o_n < high
        p_rows = p_k + o_n[:, None] * stride_kn + o_d[None, :] * stride_kd
        b_k = tl.load(p_rows, mask=m_n[:, None] & (o_d < D)[None, :], other=0.0)  # [N, D]
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        if softcap is not None:
            b_logits = cap(b_logits, softcap)
        m_see = m_row[:, None] & m_n[None, :]
        if p_mask is not None:
            p_m = p_mask + i_batch * stride_mb + o_h * stride_mh + o_s * stride_ms
            p_m = p_m[:, None] + o_n[None, :] * stride_mn
            if HIDES:
                m_see &= tl.load(p_m, mask=m_see, other=0) != 0  # [M, N]
            else:
                b_logits += tl.load(p_m, mask=m_see, other=0.0).to(tl.float32)  # [M, N]
        if CAUSAL:
            m_see &= o_n[None, :] <= b_last[:, None]
        # Keys that are masked on load are 0, whose logit is 0 and not -inf: they are hidden here.
        b_logits = tl.where(m_see, b_logits, float("-inf"))
        p_rows = p_v + o_n[:, None] * stride_vn + o_e[None, :] * stride_vd
        b_v = tl.load(p_rows, mask=m_n[:, None] & (o_e < E)[None, :], other=0.0)  # [N, E]
        b_max, b_sum, b_acc = absorb(b_logits, b_v, b_max, b_sum, b_acc)
    b_out, b_lse = finish(b_max, b_sum, b_acc)
    p_row = p_out + i_part.to(tl.int64) * stride_op + i_batch * stride_ob
    p_row = p_row + o_h * stride_oh + o_s * stride_os
    m_out = m_row[:, None] & (o_e < E)[None, :]
    b_out = b_out.to(p_out.dtype.element_ty)
    tl.store(p_row[:, None] + o_e[None, :] * stride_od, b_out, mask=m_out)
    i_first = (i_part.to(tl.int64) * tl.num_programs(1) + i_pair) * REPEAT
    tl.store(p_lse + (i_first + o_row % REPEAT) * steps + o_s, b_lse, mask=m_row)


def attention_with_lse(*given: Any) -> None:
    """Launches `attention_kernel`, one program a tile of rows: `attention_partials` of one part."""
    attention_partials(*given[:-2], *(out.unsqueeze(0) for out in given[-2:]))


def attention_partials(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Launches `attention_kernel`, one program a tile of rows and a range of keys."""
    expect_dtype(query)
    batch, heads, steps, width = query.shape
    groups, length, value_width = key.shape[1], key.shape[2], value.shape[-1]
    parts, repeat = out.shape[0], heads // groups
    block_d, block_e = max(16, next_power(width)), max(16, next_power(value_width))
    cut = tile(repeat * steps, max(block_d, block_e), query.dtype, query.device)
    if mask is not None:
        # Strides of 0 stand for what is broadcast: nothing is copied.
        mask = mask.expand(batch, heads, steps, length)
    launch(
        attention_kernel,
        (cdiv(repeat * steps, cut.rows), batch * groups, parts),
        device=query.device,
        warps=cut.warps,
        stages=cut.stages,
        p_query=query,
        p_key=key,
        p_value=value,
        p_mask=mask,
        p_out=out,
        p_lse=lse,
        steps=steps,
        length=length,
        size=length if parts == 1 else part_size(length, parts),
        groups=groups,
        scale=scale,
        softcap=softcap,
        **strides("stride_q", "bhsd", query),
        **strides("stride_k", "bgnd", key),
        **strides("stride_v", "bgnd", value),
        **strides("stride_m", "bhsn", mask),
        **strides("stride_o", "pbhsd", out),
        REPEAT=repeat,
        D=width,
        E=value_width,
        CAUSAL=is_causal and steps > 1,
        HIDES=mask is not None and mask.dtype == torch.bool,
        BLOCK_M=cut.rows,
        BLOCK_N=cut.keys,
        BLOCK_D=block_d,
        BLOCK_E=block_e,
    )


def expect_dtype(query: torch.Tensor) -> None:
    """Raises KernelError for a dtype that the kernels don't compute in."""
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise KernelError(
            f"the Triton kernels take float32, float16 and bfloat16, got {query.dtype}; "
            "CMR_KERNELS=reference computes it in PyTorch"
        )
