"""Which passages are read, as a Triton kernel; `cmr.kernels.cover` is the specification."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from cmr.kernels.cover import Cover, Enough
from cmr.kernels.gpu._choice import store_table
from cmr.kernels.gpu._launch import launch, next_power

QUERIES = 64
"""Query tokens that a program looks at at once."""


@triton.jit
def cover_kernel(
    p_values, p_shares, p_winner, p_scores, p_starts, p_fits, p_successor, p_predecessor, p_created,
    p_taken, p_begins, p_table, p_stamps,
    tokens, candidates, most, columns, parts, ratio, gain,
    PASSAGE: tl.constexpr, NEIGHBOURS: tl.constexpr,
    K: tl.constexpr, MOST: tl.constexpr, RUN: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One row a program: in each round the first passage that adds enough to those before."""
    i_batch = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, K)
    o_at = i_batch * candidates + o_k
    m_k = o_k < candidates
    b_start = tl.load(p_starts + o_at, mask=m_k, other=-1)  # [K], as the other two
    b_score = tl.load(p_scores + o_at, mask=m_k, other=-float("inf"))
    b_fit = tl.load(p_fits + o_at, mask=m_k, other=-float("inf"))
    m_close = (b_fit >= ratio * tl.load(p_fits + i_batch * candidates)) & (b_fit > 0)
    m_free = (b_start >= 0) & (o_k > 0)
    b_held = (o_k == 0).to(tl.int32)  # those that explain, the first one always
    o_m = tl.arange(0, MOST)
    start = tl.load(p_starts + i_batch * candidates)
    b_where = tl.where((o_m == 0) & (start >= 0), 0, -1)  # [MOST]
    wanted = tl.full([], 0.0, tl.float32)
    o_value = o_k.to(tl.int64)
    i_part = i_batch
    if p_winner is not None:
        # Values are those of slots, and shares those of the part that found the first passage.
        o_value = tl.maximum(b_start, 0)
        i_part = i_batch * parts + tl.load(p_winner + i_batch * columns + tl.maximum(start, 0))
    for i in range(1, most):
        b_more = tl.zeros([K], tl.float32)
        total = tl.full([], 0.0, tl.float32)
        for start_q in range(0, tokens, BLOCK_Q):
            o_q = start_q + tl.arange(0, BLOCK_Q)
            m_q = o_q < tokens
            o_row = i_batch * tokens + o_q
            b_share = tl.load(p_shares + i_part * tokens + o_q, mask=m_q, other=0.0)  # [Q]
            p_value = p_values + o_row[:, None] * columns + o_value[None, :]
            b_value = tl.load(p_value, mask=m_q[:, None] & m_k[None, :], other=0.0)  # [Q, K]
            m_held = (b_held > 0)[None, :]
            b_explained = tl.max(tl.where(m_held, b_value, -float("inf")), 1)
            total += tl.sum(b_share * b_explained, 0)
            b_new = tl.maximum(b_value - b_explained[:, None], 0.0)
            b_more += tl.sum(b_share[:, None] * b_new, 0)
        wanted = tl.where(i == 1, gain * total, wanted)
        m_enough = m_free & ((b_more >= wanted) | m_close)
        best = tl.min(tl.where(m_enough, o_k, K), 0)
        b_where = tl.where((o_m == i) & (best < K), best, b_where)
        b_held = tl.where(o_k == best, 1, b_held)
        m_free = m_free & (o_k > best)  # of none there is none behind it
    m_same = b_where[:, None] == o_k[None, :]  # [MOST, K]
    b_begin = tl.sum(tl.where(m_same, b_start[None, :], 0), 1)
    b_begin = tl.where(b_where >= 0, b_begin, -1)
    b_taken = tl.max(tl.where(m_same, b_score[None, :], -float("inf")), 1)
    m_most = o_m < most
    tl.store(p_taken + i_batch * most + o_m, b_taken, mask=m_most)
    tl.store(p_begins + i_batch * most + o_m, b_begin, mask=m_most)
    WIDTH: tl.constexpr = PASSAGE + 2 * NEIGHBOURS
    store_table(
        p_successor, p_predecessor, p_created, p_table + i_batch * most * WIDTH,
        p_stamps + i_batch * most * WIDTH, b_begin, o_m, m_most, most,
        PASSAGE, NEIGHBOURS, MOST, RUN,
    )  # fmt: skip


def cover(*given: Any) -> None:
    """Launches `cover_kernel`, one program a row."""
    values, shares, winner, scores, starts, fits, successor, predecessor, created = given[:9]
    enough, out = Enough(*given[9:13]), Cover(*given[13:])
    (batch, tokens, columns), candidates = values.shape, starts.shape[1]
    launch(
        cover_kernel,
        (batch,),
        device=values.device,
        warps=8 if candidates > 16 else 2,
        p_values=values.contiguous(),
        p_shares=shares.contiguous(),
        p_winner=None if winner is None else winner.contiguous(),
        p_scores=scores.contiguous(),
        p_starts=starts.contiguous(),
        p_fits=fits.contiguous(),
        p_successor=successor,
        p_predecessor=predecessor,
        p_created=created,
        p_taken=out.scores,
        p_begins=out.starts,
        p_table=out.table,
        p_stamps=out.stamps,
        tokens=tokens,
        candidates=candidates,
        most=out.table.shape[1],
        columns=columns,
        parts=1 if winner is None else shares.shape[1],
        ratio=enough.ratio,
        gain=enough.gain,
        PASSAGE=enough.passage,
        NEIGHBOURS=enough.neighbours,
        K=next_power(candidates),
        MOST=next_power(out.table.shape[1]),
        RUN=next_power(enough.passage + 2 * enough.neighbours),
        BLOCK_Q=QUERIES,
    )
