"""The choice among lines of similarity: the best local maxima, how sure they are, what is read."""

from __future__ import annotations

import triton
import triton.language as tl

from cmr.kernels.gpu._topk import empty_run, insert, pack, rank, unpack_score, unpack_slot


@triton.jit
def select_choice_kernel(
    p_successor, p_predecessor, p_created, p_statistics, p_lines,
    p_scores, p_starts, p_certainty, p_table, p_stamps,
    tokens, blocks, splits, k, threshold, null_base, null_slope, few_blocks, few_certainty,
    PASSAGE: tl.constexpr, NEIGHBOURS: tl.constexpr,
    K: tl.constexpr, RUN: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Candidates of a row, the best k of them, how sure they are, and the blocks to read."""
    i_batch = tl.program_id(0).to(tl.int64)
    p_line = p_lines + i_batch * 2 * blocks
    b_run = empty_run(1, K)
    best = tl.full([], -float("inf"), tl.float32)
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        b_line = tl.load(p_line + o_n, mask=m_n, other=0.0)
        b_visible = tl.load(p_line + blocks + o_n, mask=m_n, other=0.0)
        o_next = tl.load(p_successor + o_n, mask=m_n, other=-1)
        o_last = tl.load(p_predecessor + o_n, mask=m_n, other=-1)
        # Where the text ends on a side there is nothing to be below: -inf, which all are above.
        b_after = tl.load(p_line + o_next, mask=o_next >= 0, other=-float("inf"))
        b_prior = tl.load(p_line + o_last, mask=o_last >= 0, other=-float("inf"))
        # A NaN, of a row that asks nothing, is in no comparison true: no candidate.
        m_peak = m_n & (b_visible > 0) & (b_line >= b_after) & (b_line > b_prior)
        b_line = tl.where(m_peak, b_line, -float("inf"))
        best = tl.maximum(best, tl.max(b_line, 0))
        b_run = insert(b_run, pack(b_line, o_n)[None, :])
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
    # Below 0 a passage matches less than the usual one does; a row that is not sure keeps none.
    m_keep = b_score >= tl.where(certainty >= threshold, 0.0, float("inf"))
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
def line_at(p_line, p_seen, o_n, m_n):
    """A row's line at blocks `o_n` [N]; -inf where it does not see them, or there is none."""
    m_seen = tl.load(p_seen + o_n, mask=m_n, other=0) != 0
    return tl.load(p_line + o_n, mask=m_n & m_seen, other=-float("inf"))


@triton.jit
def best_passages_kernel(
    p_line, p_base, p_seen, p_certainty, p_successor, p_predecessor, p_scores, p_starts,
    blocks, k, threshold,
    K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The best k of a row by `base`, of those where the line has a local maximum and is high."""
    i_batch = tl.program_id(0).to(tl.int64)
    p_line = p_line + i_batch * blocks
    p_seen = p_seen + i_batch * blocks
    b_run = empty_run(1, K)
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        b_line = line_at(p_line, p_seen, o_n, m_n)
        o_next = tl.load(p_successor + o_n, mask=m_n, other=-1)
        o_last = tl.load(p_predecessor + o_n, mask=m_n, other=-1)
        b_after = line_at(p_line, p_seen, o_next, o_next >= 0)
        b_prior = line_at(p_line, p_seen, o_last, o_last >= 0)
        m_peak = m_n & (b_line > -float("inf")) & (b_line >= b_after) & (b_line > b_prior)
        b_base = tl.where(m_peak, b_line, -float("inf"))
        if p_base is not None:
            b_base = tl.load(p_base + i_batch * blocks + o_n, mask=m_peak, other=-float("inf"))
        b_run = insert(b_run, pack(b_base, o_n)[None, :])
    b_run = tl.reshape(b_run, [K])
    o_k = rank(b_run, K).to(tl.int64)
    b_score = unpack_score(b_run)
    b_start = unpack_slot(b_run)
    b_fit = b_score
    if p_base is not None:
        # Ranked by something else, the first one is wanted however well it fits.
        b_fit = tl.load(p_line + b_start, mask=b_start >= 0, other=-float("inf"))
        b_fit = tl.where(o_k == 0, 0.0, b_fit)
    sure = tl.load(p_certainty + i_batch) >= threshold
    m_keep = (b_start >= 0) & (b_fit >= tl.where(sure, 0.0, float("inf")))
    m_k = o_k < k
    tl.store(p_scores + i_batch * k + o_k, tl.where(m_keep, b_score, -float("inf")), mask=m_k)
    tl.store(p_starts + i_batch * k + o_k, tl.where(m_keep, b_start, -1), mask=m_k)


@triton.jit
def store_table(
    p_successor, p_predecessor, p_created, p_table, p_stamps, b_start, o_k, m_k, k,
    PASSAGE: tl.constexpr, NEIGHBOURS: tl.constexpr, K: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """The runs of slots around the starts [K], places `o_k`, each slot once, and their stamps."""
    WIDTH: tl.constexpr = PASSAGE + 2 * NEIGHBOURS
    o_run = tl.arange(0, RUN)[None, :]
    # Links are followed one by one, as a text's blocks lie anywhere in the ring; -1 leads to -1.
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
    # The stamps' place serves as a list of all slots first, which every lane has to read: a slot
    # that stands in it earlier is left out here. Barriers keep the warps in step around it.
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
