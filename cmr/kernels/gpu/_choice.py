"""Pieces of the choice of passages: candidates, likeness, what is kept, the blocks to read."""

from __future__ import annotations

import triton
import triton.language as tl

from cmr.kernels.gpu._statistics import merged, passage_z
from cmr.kernels.gpu._topk import rank, unpack_score, unpack_slot


@triton.jit
def candidates(
    p_line, p_visible, p_successor, p_predecessor, p_relevance, p_created, p_cursor,
    o_n, blocks, similarity, relevance, recency, half_life, PLAIN: tl.constexpr,
):  # fmt: skip
    """Similarity of blocks [N], and the score of those that are local maxima, -inf elsewhere."""
    m_n = o_n < blocks
    b_line = tl.load(p_line + o_n, mask=m_n, other=0.0)
    b_visible = tl.load(p_visible + o_n, mask=m_n, other=0.0)
    o_next = tl.load(p_successor + o_n, mask=m_n, other=-1)
    o_last = tl.load(p_predecessor + o_n, mask=m_n, other=-1)
    b_after = tl.load(p_line + o_next, mask=o_next >= 0, other=-float("inf"))
    b_prior = tl.load(p_line + o_last, mask=o_last >= 0, other=-float("inf"))
    m_peak = m_n & (b_visible > 0) & (b_line >= b_after) & (b_line > b_prior)
    b_base = b_line
    if not PLAIN:
        b_age = tl.load(p_cursor) - tl.load(p_created + o_n, mask=m_n, other=0)
        b_fresh = tl.exp2(-(b_age.to(tl.float32) / half_life))
        b_relevant = tl.load(p_relevance + o_n, mask=m_n, other=0.0)
        b_base = similarity * b_line + (relevance * b_relevant + recency * b_fresh)
    return b_line, tl.where(m_peak, b_base, -float("inf"))


@triton.jit
def finish(
    b_run, best, p_successor, p_predecessor, p_created, p_statistics,
    p_scores, p_starts, p_certainty, p_table, p_stamps, i_batch, tokens, splits, k,
    ratio, threshold, null_base, null_slope, few_blocks, few_certainty,
    PASSAGE: tl.constexpr, NEIGHBOURS: tl.constexpr, K: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Of what was chosen [1, K]: certainty, what is kept, and the blocks to read."""
    b_run = tl.reshape(b_run, [K])
    o_k = rank(b_run, K).to(tl.int64)
    b_score = unpack_score(b_run)
    count = tl.full([], 0.0, tl.float32)
    for i_split in range(0, splits):
        count += tl.load(p_statistics + (i_batch * splits + i_split) * 6 * tokens + 5 * tokens)
    null = null_base + null_slope * tl.log(tl.maximum(count, 1.0))
    certainty = tl.where(count < few_blocks, few_certainty, best / null)
    certainty = tl.where(best > -float("inf"), certainty, 0.0)
    tl.store(p_certainty + i_batch, certainty)
    b_first = tl.max(b_score, 0)
    least = tl.where(certainty >= threshold, ratio * b_first, float("inf"))
    m_keep = (b_score >= least) & (b_score > -float("inf"))
    b_start = tl.where(m_keep, unpack_slot(b_run), -1)
    m_k = o_k < k
    tl.store(p_scores + i_batch * k + o_k, tl.where(m_keep, b_score, -float("inf")), mask=m_k)
    tl.store(p_starts + i_batch * k + o_k, b_start, mask=m_k)
    store_table(
        p_successor, p_predecessor, p_created, p_table + i_batch * k * (PASSAGE + 2 * NEIGHBOURS),
        p_stamps + i_batch * k * (PASSAGE + 2 * NEIGHBOURS), b_start, o_k, m_k, k,
        PASSAGE, NEIGHBOURS, K, RUN,
    )  # fmt: skip


@triton.jit
def keep_merged(
    p_statistics, p_query_mask, i_batch, tokens, splits, clamp,
    SPLITS: tl.constexpr, BLOCK_Q: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """Mean, deviation and weight of each query token, in place of the first part's statistics."""
    for start in range(0, tokens, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        b_mean, b_deviation, b_weight = merged(
            p_statistics, p_query_mask, i_batch, o_q, tokens, splits, clamp, SPLITS, BLOCK_Q, POWER
        )
        tl.debug_barrier()
        p_to = p_statistics + i_batch * splits * 6 * tokens + o_q
        tl.store(p_to, b_mean, mask=o_q < tokens)
        tl.store(p_to + tokens, b_deviation, mask=o_q < tokens)
        tl.store(p_to + 2 * tokens, b_weight, mask=o_q < tokens)
        tl.debug_barrier()


@triton.jit
def cosines(
    p_row, p_visible, p_successor, p_merged, o_n, m_n, last,
    tokens, clamp, stride_token, stride_block,
    PASSAGE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Cosines of the profiles of blocks [N] with that of the block `last`."""
    b_dot = tl.zeros([BLOCK_N], tl.float32)
    b_own = tl.zeros([BLOCK_N], tl.float32)
    b_other = tl.zeros([1], tl.float32)
    o_one = tl.zeros([1], tl.int64) + last
    for start in range(0, tokens, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = o_q < tokens
        b_mean = tl.load(p_merged + o_q, mask=m_q, other=0.0)
        b_deviation = tl.load(p_merged + tokens + o_q, mask=m_q, other=0.0)
        b_weight = tl.load(p_merged + 2 * tokens + o_q, mask=m_q, other=0.0)[:, None]
        b_z = passage_z(
            p_row, p_visible, p_successor, o_q, o_n, m_q, m_n, stride_token, stride_block,
            b_mean, b_deviation, clamp, PASSAGE,
        )  # fmt: skip
        b_one = passage_z(
            p_row, p_visible, p_successor, o_q, o_one, m_q, o_one >= 0, stride_token, stride_block,
            b_mean, b_deviation, clamp, PASSAGE,
        )  # fmt: skip
        b_z = tl.maximum(b_z, 0.0)  # [Q, N]
        b_one = tl.maximum(b_one, 0.0)  # [Q, 1]
        b_dot += tl.sum(b_weight * b_z * b_one, 0)
        b_own += tl.sum(b_weight * b_z * b_z, 0)
        b_other += tl.sum(b_weight * b_one * b_one, 0)
    b_norms = tl.sqrt(b_own) * tl.sqrt(b_other)
    return tl.where(b_norms > 0, b_dot / tl.where(b_norms > 0, b_norms, 1.0), 0.0)


@triton.jit
def store_table(
    p_successor, p_predecessor, p_created, p_table, p_stamps, b_start, o_k, m_k, k,
    PASSAGE: tl.constexpr, NEIGHBOURS: tl.constexpr, K: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """The runs of slots around the starts [K], places `o_k`, each slot once, and their stamps."""
    WIDTH: tl.constexpr = PASSAGE + 2 * NEIGHBOURS
    o_run = tl.arange(0, RUN)[None, :]
    b_table = tl.where(o_run == NEIGHBOURS, b_start[:, None], -1)  # [K, RUN]
    b_slot = b_start
    for i in tl.static_range(NEIGHBOURS):
        b_slot = tl.load(p_predecessor + b_slot, mask=b_slot >= 0, other=-1)
        b_table = tl.where(o_run == NEIGHBOURS - 1 - i, b_slot[:, None], b_table)
    b_slot = b_start
    for i in tl.static_range(NEIGHBOURS + PASSAGE - 1):
        b_slot = tl.load(p_successor + b_slot, mask=b_slot >= 0, other=-1)
        b_table = tl.where(o_run == NEIGHBOURS + 1 + i, b_slot[:, None], b_table)
    o_flat = o_k[:, None] * WIDTH + o_run
    m_flat = m_k[:, None] & (o_run < WIDTH)
    tl.store(p_stamps + o_flat, b_table, mask=m_flat)
    tl.debug_barrier()
    b_once = b_table
    for i_flat in range(0, k * WIDTH):
        slot = tl.load(p_stamps + i_flat)
        b_once = tl.where((b_table == slot) & (o_flat > i_flat), -1, b_once)
    tl.debug_barrier()
    b_stamp = tl.load(p_created + b_once, mask=m_flat & (b_once >= 0), other=-1)
    tl.store(p_table + o_flat, b_once, mask=m_flat)
    tl.store(p_stamps + o_flat, b_stamp, mask=m_flat)
