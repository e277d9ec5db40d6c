"""The choice of passages as Triton kernels; `cmr.kernels.select` is the specification."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._choice import best_passages_kernel, select_choice_kernel
from cmr.kernels.gpu._launch import cdiv, launch, next_power, strides
from cmr.kernels.gpu._statistics import is_finite, merged, passage_z
from cmr.kernels.reference.select import Rule, SearchColumns, Selection

QUERIES, BLOCKS = 16, 64
"""Query tokens and blocks of a tile."""
LOOKED_AT = 512
"""Blocks that the choosing program looks at together."""


@triton.jit
def select_statistics_kernel(
    p_maxima, p_session, p_positions, p_sessions, p_before, p_statistics, p_lines,
    tokens, blocks, block, splits, per_split,
    stride_batch, stride_token, stride_block,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Which blocks a row may see, and statistics of their maxima, of a part of the blocks."""
    # A program keeps the statistics of its part of the blocks in a place of its own; they are put
    # together by whoever reads them, as no program of a launch can wait for another.
    i_split = tl.program_id(0).to(tl.int64)
    i_batch = tl.program_id(1).to(tl.int64)
    i_part = tl.program_id(2)
    o_q = i_part * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = o_q < tokens
    session = tl.load(p_sessions + i_batch)
    session = tl.where(session < 0, -2, session)  # empty slots have -1: nobody sees those
    b_count = tl.zeros([BLOCK_Q], tl.float32)
    b_mean = tl.zeros([BLOCK_Q], tl.float32)
    b_squares = tl.zeros([BLOCK_Q], tl.float32)
    b_largest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    b_size = tl.zeros([BLOCK_Q], tl.float32)
    b_seen = tl.zeros([BLOCK_Q], tl.float32)
    end = tl.minimum((i_split + 1) * per_split, blocks)
    for start in range(i_split * per_split, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < end
        m_visible = m_n & (tl.load(p_session + o_n, mask=m_n, other=-1) == session)
        if p_before is not None:
            b_last = tl.full([BLOCK_N], -0x7FFFFFFFFFFFFFFF, tl.int64)
            for start_t in range(0, block, BLOCK_P):
                o_t = start_t + tl.arange(0, BLOCK_P)
                p_at = p_positions + o_n[:, None] * block + o_t[None, :]
                m_at = m_n[:, None] & (o_t < block)[None, :]
                b_at = tl.load(p_at, mask=m_at, other=-0x7FFFFFFFFFFFFFFF)  # [N, P]
                b_last = tl.maximum(b_last, tl.max(b_at, 1))
            m_visible = m_visible & (b_last < tl.load(p_before + i_batch))
        # Programs for other query tokens find the same visibility: one of them writes it.
        if i_part == 0:
            p_visible = p_lines + (i_batch * 2 + 1) * blocks + o_n
            tl.store(p_visible, m_visible.to(tl.float32), mask=m_n)
        p_m = p_maxima + i_batch * stride_batch + o_q[:, None].to(tl.int64) * stride_token
        p_m = p_m + o_n[None, :] * stride_block
        b_m = tl.load(p_m, mask=m_q[:, None] & m_n[None, :], other=float("-inf"))  # [Q, N]
        m_usable = is_finite(b_m) & m_visible[None, :]
        # Means and squares around them, tile by tile: a sum of squares alone loses the spread of
        # maxima that all lie near one value.
        b_new = tl.sum(m_usable.to(tl.float32), 1)
        b_centre = tl.sum(tl.where(m_usable, b_m, 0.0), 1) / tl.maximum(b_new, 1.0)
        b_off = tl.where(m_usable, b_m - b_centre[:, None], 0.0)
        b_both = tl.maximum(b_count + b_new, 1.0)
        b_apart = b_centre - b_mean
        b_squares += tl.sum(b_off * b_off, 1) + b_apart * b_apart * b_count * b_new / b_both
        b_mean += b_apart * b_new / b_both
        b_count += b_new
        b_largest = tl.maximum(b_largest, tl.max(tl.where(m_usable, b_m, float("-inf")), 1))
        b_size = tl.maximum(b_size, tl.max(tl.where(m_usable, tl.abs(b_m), 0.0), 1))
        b_seen += tl.sum(m_visible.to(tl.float32), 0)
    p_to = p_statistics + (i_batch * splits + i_split) * 6 * tokens + o_q
    tl.store(p_to, b_count, mask=m_q)
    tl.store(p_to + tokens, b_mean, mask=m_q)
    tl.store(p_to + 2 * tokens, b_squares, mask=m_q)
    tl.store(p_to + 3 * tokens, b_largest, mask=m_q)
    tl.store(p_to + 4 * tokens, b_size, mask=m_q)
    tl.store(p_to + 5 * tokens, b_seen, mask=m_q)


@triton.jit
def select_lines_kernel(
    p_maxima, p_query_mask, p_successor, p_statistics, p_lines,
    tokens, blocks, splits, clamp,
    stride_batch, stride_token, stride_block,
    SPLITS: tl.constexpr, POWER: tl.constexpr, PASSAGE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Similarity of each block's passage: the weighted mean of its z; NaN in a row without any."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < blocks
    p_row = p_maxima + i_batch * stride_batch
    p_line = p_lines + i_batch * 2 * blocks
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, tokens, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        b_mean, b_deviation, b_weight = merged(
            p_statistics, p_query_mask, i_batch, o_q, tokens, splits, clamp, SPLITS, BLOCK_Q, POWER
        )
        b_z = passage_z(
            p_row, p_line + blocks, p_successor, o_q, o_n, o_q < tokens, m_n, stride_token,
            stride_block, b_mean, b_deviation, clamp, PASSAGE,
        )  # fmt: skip
        b_sum += tl.sum(b_weight[:, None] * b_z, 0)
        total += tl.sum(b_weight, 0)
    # A row without any weight asks nothing: NaN is above nothing, so that it finds nothing.
    b_line = tl.where(total > 0, b_sum / tl.where(total > 0, total, 1.0), float("nan"))
    tl.store(p_line + o_n, b_line, mask=m_n)


@triton.jit
def select_values_kernel(
    p_maxima, p_query_mask, p_successor, p_statistics, p_lines, p_starts, p_values, p_shares,
    tokens, blocks, splits, k, clamp,
    stride_batch, stride_token, stride_block,
    SPLITS: tl.constexpr, POWER: tl.constexpr, PASSAGE: tl.constexpr,
    BLOCK_Q: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """How well the chosen passages match some query tokens, and the shares of those."""
    i_batch = tl.program_id(1).to(tl.int64)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, tokens, BLOCK_Q):
        b_weight = merged(
            p_statistics, p_query_mask, i_batch, start + tl.arange(0, BLOCK_Q), tokens, splits,
            clamp, SPLITS, BLOCK_Q, POWER,
        )[2]  # fmt: skip
        total += tl.sum(b_weight, 0)
    o_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = o_q < tokens
    b_mean, b_deviation, b_weight = merged(
        p_statistics, p_query_mask, i_batch, o_q, tokens, splits, clamp, SPLITS, BLOCK_Q, POWER
    )
    b_share = tl.where(total > 0, b_weight / tl.where(total > 0, total, 1.0), 0.0)
    tl.store(p_shares + i_batch * tokens + o_q, b_share, mask=m_q)
    o_k = tl.arange(0, K)
    m_k = o_k < k
    o_n = tl.maximum(tl.load(p_starts + i_batch * k + o_k, mask=m_k, other=0), 0)
    m_n = m_k & (o_n < blocks)
    b_z = passage_z(
        p_maxima + i_batch * stride_batch, p_lines + (i_batch * 2 + 1) * blocks, p_successor, o_q,
        o_n, m_q, m_n, stride_token, stride_block, b_mean, b_deviation, clamp, PASSAGE,
    )  # fmt: skip
    p_to = p_values + (i_batch * tokens + o_q[:, None].to(tl.int64)) * k + o_k[None, :]
    tl.store(p_to, tl.where(m_n[None, :], b_z, 0.0), mask=m_q[:, None] & m_k[None, :])  # [Q, K]


def maxsim_select(maxima: torch.Tensor, query_mask: torch.Tensor | None, *rest: Any) -> None:
    """Launches statistics over parts of the blocks, lines over blocks, the choice, its values."""
    columns, (sessions, before), rule = SearchColumns(*rest[:5]), rest[5:7], Rule(*rest[7:16])
    (statistics, lines), out = rest[16:18], Selection(*rest[18:])
    batch, tokens, blocks = maxima.shape
    splits, k = statistics.shape[1], out.scores.shape[1]
    block = columns.positions.shape[1]
    # Triton loads bools as bytes.
    asked = None if query_mask is None else query_mask.contiguous().view(torch.uint8)
    given: dict[str, Any] = {
        "device": maxima.device,
        "warps": 4,
        "p_maxima": maxima,
        "p_statistics": statistics,
        "p_lines": lines,
        "tokens": tokens,
        "blocks": blocks,
        "splits": splits,
        **strides("stride_", ("batch", "token", "block"), maxima),
    }
    merging: dict[str, Any] = {
        "p_query_mask": asked,
        "p_successor": columns.successor,
        "clamp": rule.clamp,
        "SPLITS": next_power(splits),
        "POWER": rule.peak_power,
        "PASSAGE": rule.passage,
        "BLOCK_Q": QUERIES,
    }
    launch(
        select_statistics_kernel,
        (splits, batch, max(1, cdiv(tokens, QUERIES))),
        p_session=columns.session,
        p_positions=columns.positions.contiguous(),
        p_sessions=sessions,
        p_before=before,
        block=block,
        per_split=cdiv(cdiv(blocks, splits), BLOCKS) * BLOCKS,
        BLOCK_Q=QUERIES,
        BLOCK_N=BLOCKS,
        BLOCK_P=min(32, next_power(block)),
        **given,
    )
    launch(
        select_lines_kernel,
        (cdiv(blocks, BLOCKS), batch),
        BLOCK_N=BLOCKS,
        **merging,
        **given,
    )
    launch(
        select_choice_kernel,
        (batch,),
        device=maxima.device,
        warps=8 if k > 16 else 4,
        p_successor=columns.successor,
        p_predecessor=columns.predecessor,
        p_created=columns.created,
        p_statistics=statistics,
        p_lines=lines,
        p_scores=out.scores,
        p_starts=out.starts,
        p_certainty=out.certainty,
        p_table=out.table,
        p_stamps=out.stamps,
        tokens=tokens,
        blocks=blocks,
        splits=splits,
        k=k,
        threshold=rule.threshold,
        null_base=rule.null_base,
        null_slope=rule.null_slope,
        few_blocks=rule.few_blocks,
        few_certainty=rule.few_certainty,
        PASSAGE=rule.passage,
        NEIGHBOURS=rule.neighbours,
        K=next_power(k),
        RUN=next_power(rule.passage + 2 * rule.neighbours),
        BLOCK_N=LOOKED_AT,
    )
    launch(
        select_values_kernel,
        (cdiv(tokens, QUERIES), batch),
        p_starts=out.starts,
        p_values=out.values,
        p_shares=out.shares,
        k=k,
        K=next_power(k),
        **merging,
        **given,
    )


def best_passages(
    line: torch.Tensor, base: torch.Tensor | None, seen: torch.Tensor, *rest: Any
) -> None:
    """Launches `best_passages_kernel`, one program a row."""
    certainty, columns, (threshold, scores, starts) = rest[0], SearchColumns(*rest[1:6]), rest[6:]
    batch, blocks = line.shape
    k = scores.shape[1]
    launch(
        best_passages_kernel,
        (batch,),
        device=line.device,
        warps=8 if k > 16 else 4,
        p_line=line.contiguous(),
        p_base=None if base is None else base.contiguous(),
        p_seen=seen.contiguous().view(torch.uint8),
        p_certainty=certainty.contiguous(),
        p_successor=columns.successor,
        p_predecessor=columns.predecessor,
        p_scores=scores,
        p_starts=starts,
        blocks=blocks,
        k=k,
        threshold=threshold,
        K=next_power(k),
        BLOCK_N=LOOKED_AT,
    )
