"""Reading chosen blocks and merging with local attention, in one launch of a Triton kernel.

`cmr.kernels.reweave_paged` is the specification. Rows are packed as in
`attention`: token r // REPEAT and head r % REPEAT of the group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, launch, next_power, strides, target
from cmr.kernels.gpu.attention import Tile, absorb, cap, expect_dtype, finish, tile


@triton.jit
def readable_tokens(
    p_table, p_stamps, p_created, p_positions, o_t, m_t, i_first, BLOCK: tl.constexpr
):
    """The slot of each listed token, and whether it may be read: [N] each.

    Of an entry that is empty, or whose slot was given away since, nothing more is read.
    """
    # Each load is masked by the one before: a slot of -1, or one that was given to other text, must
    # not be followed, as what stands there may be anything.
    o_entry = i_first + o_t // BLOCK
    b_slot = tl.load(p_table + o_entry, mask=m_t, other=-1)
    m_t = b_slot >= 0
    b_stamp = tl.load(p_stamps + o_entry, mask=m_t, other=0)
    m_t &= tl.load(p_created + b_slot, mask=m_t, other=-1) == b_stamp
    b_position = tl.load(p_positions + b_slot * BLOCK + o_t % BLOCK, mask=m_t, other=-1)
    return b_slot, m_t & (b_position >= 0)


@triton.jit
def reweave_kernel(
    p_query, p_key, p_value, p_table, p_stamps, p_created, p_positions, p_bias,
    p_local, p_local_lse, p_cos, p_sin, p_query_mask, p_out, p_gate,
    steps, entries, parts, groups, scale, softcap,
    stride_qb, stride_qh, stride_qs, stride_qd,
    stride_kn, stride_kg, stride_kt, stride_kd,
    stride_cb, stride_cs, stride_mb, stride_ms,
    stride_lb, stride_lh, stride_ls, stride_ld,
    stride_ob, stride_oh, stride_os, stride_od,
    REPEAT: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROTARY: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of rows of one group, against all blocks of its row of the table."""
    # A program has its rows of the output to itself, so that it may merge and write without any
    # other one; int64, as the stores are large.
    i_pair = tl.program_id(1).to(tl.int64)
    i_batch = i_pair // groups
    i_group = i_pair % groups
    o_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_s = (o_row // REPEAT).to(tl.int64)
    o_h = i_group * REPEAT + o_row % REPEAT
    m_row = o_s < steps
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_out = m_row[:, None] & m_d[None, :]
    p_row = p_query + i_batch * stride_qb + o_h * stride_qh + o_s * stride_qs
    b_q = tl.load(p_row[:, None] + o_d[None, :] * stride_qd, mask=m_out, other=0.0)  # [M, D]
    if ROTARY:
        # The half-split layout pairs feature i with i + R / 2. The partner is loaded a second time:
        # lanes cannot hand it to each other.
        o_pair = tl.where(o_d < ROTARY // 2, o_d + ROTARY // 2, o_d - ROTARY // 2)
        m_turn = m_row[:, None] & (o_d < ROTARY)[None, :]
        b_pair = tl.load(p_row[:, None] + o_pair[None, :] * stride_qd, mask=m_turn, other=0.0)
        b_sign = tl.where(o_d < ROTARY // 2, -1.0, 1.0)
        o_turn = (i_batch * stride_cb + o_s * stride_cs)[:, None] + o_d[None, :]
        b_cos = tl.load(p_cos + o_turn, mask=m_turn, other=1.0)  # [M, D]
        b_sin = tl.load(p_sin + o_turn, mask=m_turn, other=0.0)  # [M, D]
        b_pair = b_sign[None, :] * b_pair.to(tl.float32)
        b_q = (b_q.to(tl.float32) * b_cos + b_pair * b_sin).to(b_q.dtype)
    m_read = m_row
    if p_query_mask is not None:
        p_m = p_query_mask + i_batch * stride_mb + o_s * stride_ms
        m_read &= tl.load(p_m, mask=m_row, other=0) != 0
    bias = tl.load(p_bias + i_batch)
    anyone = tl.max(m_read.to(tl.int32), 0)
    # Nobody reads, or memory is off: no block is looked at, and the local attention goes through.
    high = tl.where((bias == float("-inf")) | (anyone == 0), 0, entries * BLOCK)
    b_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, high, BLOCK_N):
        o_t = start + tl.arange(0, BLOCK_N)
        b_slot, m_t = readable_tokens(
            p_table, p_stamps, p_created, p_positions, o_t, o_t < high, i_batch * entries, BLOCK
        )
        m_kv = m_t[:, None] & m_d[None, :]
        o_kv = b_slot * stride_kn + i_group * stride_kg + (o_t % BLOCK) * stride_kt
        o_kv = o_kv[:, None] + o_d[None, :] * stride_kd
        b_k = tl.load(p_key + o_kv, mask=m_kv, other=0.0)  # [N, D]
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        if softcap is not None:
            b_logits = cap(b_logits, softcap)
        # Unreadable tokens were loaded as 0 and not as what stands there: NaN times 0 stays NaN.
        b_logits = tl.where(m_t[None, :], b_logits, float("-inf"))
        b_v = tl.load(p_value + o_kv, mask=m_kv, other=0.0)  # [N, D]
        b_max, b_sum, b_acc = absorb(b_logits, b_v, b_max, b_sum, b_acc)
    b_out, b_lse = finish(b_max, b_sum, b_acc)
    # Local log-sum-exps are [P, B, H, S] and contiguous; a part is `part` elements further on.
    i_lse = (i_pair * REPEAT + o_row % REPEAT) * steps + o_s
    part = tl.num_programs(1).to(tl.int64) * REPEAT * steps
    if PARTS > 1:
        o_part = tl.arange(0, PARTS)
        m_part = m_row[:, None] & (o_part < parts)[None, :]
        p_lse = p_local_lse + i_lse[:, None] + o_part[None, :] * part
        b_parts = tl.load(p_lse, mask=m_part, other=float("-inf"))  # [M, P]
        b_top = tl.max(b_parts, 1)
        b_top = tl.where(b_top == float("-inf"), 0.0, b_top)  # no part saw a key: no -inf - -inf
        b_total = tl.sum(tl.exp(b_parts - b_top[:, None]), 1)
        b_seen = b_total > 0
        b_total = tl.where(b_seen, b_total, 1.0)
        b_local_lse = tl.where(b_seen, b_top + tl.log(b_total), float("-inf"))
    else:
        b_local_lse = tl.load(p_local_lse + i_lse, mask=m_row, other=0.0)  # [M]
    m_read &= b_lse != float("-inf")
    # sigmoid(lm + bias - ll), with 1 where ll is -inf and lm is not. Where both are, it is NaN, and
    # the rows that do not read are taken out.
    b_gate = tl.where(m_read, 1.0 / (1.0 + tl.exp(b_local_lse - b_lse - bias)), 0.0)
    b_out = b_gate[:, None] * b_out
    if PARTS > 1:
        b_rest = (1.0 - b_gate) / b_total
        for _ in range(0, parts):
            b_share = b_rest * tl.exp(tl.load(p_local_lse + i_lse, mask=m_row, other=0.0) - b_top)
            p_part = p_local + i_lse[:, None] * D + o_d[None, :]
            b_part = tl.load(p_part, mask=m_out, other=0.0).to(tl.float32)  # [M, D]
            b_out += b_share[:, None] * b_part
            i_lse += part
        i_lse -= parts * part
        b_out = b_out.to(p_out.dtype.element_ty)
    else:
        p_part = p_local + i_batch * stride_lb + o_h * stride_lh + o_s * stride_ls
        p_part = p_part[:, None] + o_d[None, :] * stride_ld
        b_part = tl.load(p_part, mask=m_out, other=0.0).to(tl.float32)  # [M, D]
        b_out += (1.0 - b_gate)[:, None] * b_part
        # Not 1 times the local part: what reads nothing keeps it bit for bit.
        b_out = tl.where(m_read[:, None], b_out, b_part).to(p_out.dtype.element_ty)
    p_row = p_out + i_batch * stride_ob + o_h * stride_oh + o_s * stride_os
    tl.store(p_row[:, None] + o_d[None, :] * stride_od, b_out, mask=m_out)
    tl.store(p_gate + i_lse, b_gate, mask=m_row)


def reading_tile(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """As `tile`, with more registers a row: the rotation needs them, and AMD's masks do."""
    cut = tile(rows, width, dtype, device)
    if dtype == torch.float32:
        return cut
    if rows > 16 and width > 64:
        # More warps on fewer rows: the accumulator, the rotated query and a tile of keys fit.
        cut = Tile(32 if width > 128 else min(cut.rows, 64), 32, 8, cut.stages)
    if target(device).backend == "hip":
        return cut._replace(keys=32 if rows <= 16 and width <= 128 else 16)
    return cut


def reweave_paged(
    query: torch.Tensor,
    key_store: torch.Tensor,
    value_store: torch.Tensor,
    table: torch.Tensor,
    stamps: torch.Tensor,
    created: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    query_mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    out: torch.Tensor,
    gate: torch.Tensor,
) -> None:
    """Launches `reweave_kernel`, one program a tile of rows."""
    expect_dtype(query)
    batch, heads, steps, width = query.shape
    _, groups, block, _ = key_store.shape
    repeat, padded = heads // groups, max(16, next_power(width))
    cut = reading_tile(repeat * steps, padded, query.dtype, query.device)
    launch(
        reweave_kernel,
        (cdiv(repeat * steps, cut.rows), batch * groups),
        device=query.device,
        warps=cut.warps,
        stages=cut.stages,
        p_query=query,
        p_key=key_store,
        p_value=value_store,
        p_table=table,
        p_stamps=stamps,
        p_created=created,
        p_positions=positions,
        p_bias=bias,
        p_local=local_out,
        p_local_lse=local_lse,
        p_cos=cos,
        p_sin=sin,
        p_query_mask=query_mask,
        p_out=out,
        p_gate=gate,
        steps=steps,
        entries=table.shape[1],
        parts=local_out.shape[0],
        groups=groups,
        scale=scale,
        softcap=softcap,
        **strides("stride_q", "bhsd", query),
        **strides("stride_k", "ngtd", key_store),
        **strides("stride_c", "bs", None if cos is None else cos[..., 0]),
        **strides("stride_m", "bs", query_mask),
        **strides("stride_l", "bhsd", local_out[0]),
        **strides("stride_o", "bhsd", out),
        REPEAT=repeat,
        D=width,
        BLOCK=block,
        ROTARY=0 if cos is None else cos.shape[-1],
        PARTS=next_power(local_out.shape[0]),
        BLOCK_M=cut.rows,
        BLOCK_N=cut.keys,
        BLOCK_D=padded,
    )
