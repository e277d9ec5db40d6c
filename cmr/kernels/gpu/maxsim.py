"""Block maxima as a Triton kernel; `cmr.kernels.maxsim` is the specification."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, in_rows, launch, next_power, strides, target
from cmr.kernels.gpu._topk import decode

TOKENS = 128
"""Tokens of the index that a program holds at once: several small blocks or a part of a large."""


@triton.jit
def block_maxima_kernel(
    p_query, p_index, p_stored, p_scale, p_session, p_sessions, p_slots, p_out,
    tokens, blocks, block,
    stride_query_batch, stride_query_token, stride_index_block, stride_index_token,
    stride_out_batch, stride_out_token, stride_out_block,
    HIDDEN: tl.constexpr, POSITIONS: tl.constexpr, FP8: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """`BLOCKS` blocks and up to `BLOCK_Q` query tokens of one row a program."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_q = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = o_q < tokens
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    o_out = first + tl.arange(0, BLOCKS)
    o_column = tl.arange(0, BLOCKS * BLOCK_T)
    o_n = first + o_column // BLOCK_T  # each column is a token: of this block,
    o_in = o_column % BLOCK_T  # at this place
    m_n = o_n < blocks
    if p_slots is not None:
        # From here on the columns are blocks of the index; the place of the result stays `o_out`.
        o_n = tl.load(p_slots + i_batch * blocks + o_n, mask=m_n, other=-1)
        m_n = o_n >= 0
    if p_session is not None:
        b_session = tl.load(p_session + o_n, mask=m_n, other=-1)
        m_n = m_n & (b_session == tl.load(p_sessions + i_batch))
    b_best = tl.full([BLOCK_Q, BLOCKS], float("-inf"), tl.float32)
    # A maximum drops NaN: it is noted beside, as a broken state in the index has to show.
    b_nan = tl.zeros([BLOCK_Q, BLOCKS], tl.int32)
    p_row = p_query + i_batch * stride_query_batch + o_q[:, None].to(tl.int64) * stride_query_token
    # Blocks of other sessions only: their part of the index is not read.
    if tl.max(m_n.to(tl.int32), 0) > 0:
        for start_t in range(0, block, BLOCK_T):
            o_t = start_t + o_in
            m_t = m_n & (o_t < block)
            if p_stored is not None:
                b_stored = tl.load(p_stored + o_n * block + o_t, mask=m_t, other=0)
                m_t = m_t & (b_stored >= 0 if POSITIONS else b_stored != 0)
            p_token = p_index + o_n * stride_index_block + o_t * stride_index_token
            b_similar = tl.zeros([BLOCK_Q, BLOCKS * BLOCK_T], tl.float32)
            for start_h in range(0, HIDDEN, BLOCK_H):
                o_h = start_h + tl.arange(0, BLOCK_H)
                m_a = m_q[:, None]
                m_b = m_t[None, :]
                # Features that fill whole tiles need no mask, and are loaded 128 bits at a time.
                if HIDDEN % BLOCK_H:
                    m_a = m_a & (o_h < HIDDEN)[None, :]
                    m_b = m_b & (o_h < HIDDEN)[:, None]
                b_q = tl.load(p_row + o_h[None, :], mask=m_a, other=0.0)  # [Q, H]
                b_k = tl.load(p_token[None, :] + o_h[:, None], mask=m_b, other=0)  # [H, T]
                b_k = decode(b_k, FP8, b_q.dtype)
                b_similar = tl.dot(b_q, b_k, b_similar, input_precision="ieee")
            if p_scale is not None:
                b_scale = tl.load(p_scale + o_n * block + o_t, mask=m_t, other=0.0)
                b_similar = b_similar * b_scale[None, :]
            m_nan = (b_similar != b_similar) & m_t[None, :]
            b_similar = tl.where(m_t[None, :] & (m_nan == 0), b_similar, float("-inf"))
            b_wide = tl.reshape(b_similar, [BLOCK_Q, BLOCKS, BLOCK_T])
            b_best = tl.maximum(b_best, tl.max(b_wide, 2))
            b_wide = tl.reshape(m_nan.to(tl.int32), [BLOCK_Q, BLOCKS, BLOCK_T])
            b_nan = tl.maximum(b_nan, tl.max(b_wide, 2))
    b_best = tl.where(b_nan > 0, float("nan"), b_best)
    p_to = p_out + i_batch * stride_out_batch + o_out[None, :] * stride_out_block
    p_to = p_to + o_q[:, None].to(tl.int64) * stride_out_token
    tl.store(p_to, b_best, mask=m_q[:, None] & (o_out < blocks)[None, :])  # [Q, BLOCKS]


def block_maxima(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None,
    scale: torch.Tensor | None,
    session: torch.Tensor | None,
    sessions: torch.Tensor | None,
    slots: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Launches `block_maxima_kernel` over blocks, rows and query tokens."""
    batch, tokens, hidden = query.shape
    block = index.shape[1]
    blocks = out.shape[2]
    query = in_rows(query)
    assert index.stride(-1) == 1
    fp8 = index.dtype == torch.float8_e4m3fn
    stored = token_mask
    if stored is not None:
        stored = stored.contiguous()
        stored = stored.view(torch.uint8) if stored.dtype == torch.bool else stored
    wide = query.dtype == torch.float32
    amd = target(query.device).backend == "hip"
    at_once = TOKENS // 2 if wide or amd else TOKENS
    columns = min(at_once, max(4, next_power(block)))
    rows = min(32 if wide else 64, max(16, next_power(tokens)))
    if amd and rows > 16:  # tiles of 32 rows spill there, and so do features that don't line up
        rows = 16 if hidden % 32 else 64
    # More warps where a tile's accumulators would not fit into the registers of four.
    many = rows > 16 and (scale is not None or (wide if amd else rows > 32))
    launch(
        block_maxima_kernel,
        (cdiv(blocks, at_once // columns), batch, cdiv(tokens, rows)),
        device=query.device,
        warps=8 if many else 4,
        stages=1 if amd else 3 if slots is None else 2,
        p_query=query,
        p_index=index.view(torch.uint8) if fp8 else index,
        p_stored=stored,
        p_scale=None if scale is None else scale.contiguous(),
        p_session=session,
        p_sessions=sessions,
        p_slots=None if slots is None else slots.contiguous(),
        p_out=out,
        tokens=tokens,
        blocks=blocks,
        block=block,
        **strides("stride_query_", ("batch", "token"), query),
        **strides("stride_index_", ("block", "token"), index),
        **strides("stride_out_", ("batch", "token", "block"), out),
        HIDDEN=hidden,
        POSITIONS=stored is not None and stored.dtype == torch.int64,
        FP8=fp8,
        BLOCK_Q=rows,
        BLOCKS=at_once // columns,
        BLOCK_T=columns,
        BLOCK_H=32 if wide or amd else 64,
    )
