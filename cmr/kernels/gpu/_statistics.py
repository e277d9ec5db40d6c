"""Pieces of a search: statistics of maxima, at once or kept part by part, and what z they give."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_finite(b_x):
    """Neither NaN nor infinite."""
    return (b_x == b_x) & (tl.abs(b_x) < float("inf"))


@triton.jit
def spread(p_line, p_seen, blocks, stride_block, BLOCK_N: tl.constexpr):
    """Mean of a line over seen blocks where it is finite, and deviation (0: none to speak of)."""
    count = tl.full([], 0.0, tl.float32)
    mean = tl.full([], 0.0, tl.float32)
    squares = tl.full([], 0.0, tl.float32)
    largest = tl.full([], 0.0, tl.float32)
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        b_m = tl.load(p_line + o_n * stride_block, mask=m_n, other=float("-inf")).to(tl.float32)
        m_usable = is_finite(b_m) & (tl.load(p_seen + o_n, mask=m_n, other=0) != 0)
        # Squares around the mean of each tile: a sum of squares alone loses the spread of maxima
        # that all lie near one value.
        new = tl.sum(m_usable.to(tl.float32), 0)
        centre = tl.sum(tl.where(m_usable, b_m, 0.0), 0) / tl.maximum(new, 1.0)
        b_off = tl.where(m_usable, b_m - centre, 0.0)
        both = tl.maximum(count + new, 1.0)
        apart = centre - mean
        squares += tl.sum(b_off * b_off, 0) + apart * apart * count * new / both
        mean += apart * new / both
        count += new
        largest = tl.maximum(largest, tl.max(tl.where(m_usable, tl.abs(b_m), 0.0), 0))
    deviation = tl.sqrt(squares / tl.maximum(count, 1.0))
    # A spread at the level of float32 rounding is no spread.
    return mean, tl.where(deviation > 1e-6 * largest, deviation, 0.0)


@triton.jit
def merged(
    p_statistics, p_query_mask, i_batch, o_q, tokens, splits, clamp,
    SPLITS: tl.constexpr, BLOCK_Q: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """Mean, deviation (0: none to speak of) and weight of query tokens [Q], of all parts.

    Parts are put together as by Chan, Golub and LeVeque (1979).
    """
    o_s = tl.arange(0, SPLITS)
    m_q = o_q < tokens
    m_s = (o_s < splits)[:, None] & m_q[None, :]
    p_part = p_statistics + (i_batch * splits + o_s[:, None]) * 6 * tokens + o_q[None, :]
    b_count = tl.load(p_part, mask=m_s, other=0.0)  # [SPLITS, Q], as all of these
    b_mean = tl.load(p_part + tokens, mask=m_s, other=0.0)
    b_squares = tl.load(p_part + 2 * tokens, mask=m_s, other=0.0)
    b_largest = tl.load(p_part + 3 * tokens, mask=m_s, other=float("-inf"))
    b_size = tl.load(p_part + 4 * tokens, mask=m_s, other=0.0)
    b_total = tl.sum(b_count, 0)
    b_among = tl.maximum(b_total, 1.0)
    b_centre = tl.sum(b_mean * b_count, 0) / b_among
    b_off = b_mean - b_centre[None, :]
    b_variance = tl.sum(b_squares + b_count * b_off * b_off, 0) / b_among
    b_deviation = tl.sqrt(b_variance)
    # A spread at the level of float32 rounding is no spread.
    b_deviation = tl.where(b_deviation > 1e-6 * tl.max(b_size, 0), b_deviation, 0.0)
    # Nothing stands out where all maxima are equal: the divisor is 1 there, and the peak 0.
    m_none = b_total == 0
    b_peak = (tl.max(b_largest, 0) - b_centre) / tl.where(b_deviation == 0, 1.0, b_deviation)
    b_peak = tl.where(m_none | (b_deviation == 0), 0.0, b_peak)
    b_peak = tl.minimum(tl.maximum(b_peak, 0.0), clamp)
    b_weight = b_peak * 0.0 + 1.0
    if POWER > 0:
        b_weight = b_peak
    if POWER > 1:
        b_weight = b_peak * b_peak
    # Of a single block, or several that are the same, none stands out: they fit equally well.
    b_weight = tl.where((b_deviation == 0) & (b_total > 0), 1.0, b_weight)
    if p_query_mask is not None:
        b_asked = tl.load(p_query_mask + i_batch * tokens + o_q, mask=m_q, other=0)
        b_weight = tl.where(b_asked != 0, b_weight, 0.0)
    return b_centre, b_deviation, tl.where(m_q, b_weight, 0.0)


@triton.jit
def standardised(
    p_maxima, p_visible, o_q, o_n, m_q, m_n, stride_token, stride_block, b_mean, b_deviation, clamp
):  # fmt: skip
    """Z [Q, N] of query tokens at the blocks `o_n` [N]; `p_maxima`, `p_visible` are of the row."""
    # int64: kept maxima of many tokens over many blocks pass 2**31 elements.
    p_at = p_maxima + o_q[:, None].to(tl.int64) * stride_token + o_n[None, :] * stride_block
    b_m = tl.load(p_at, mask=m_q[:, None] & m_n[None, :], other=float("-inf"))  # [Q, N]
    b_visible = tl.load(p_visible + o_n, mask=m_n, other=0.0)
    m_usable = is_finite(b_m) & (b_visible > 0)[None, :]
    b_over = tl.where(b_deviation == 0, 1.0, b_deviation)[:, None]
    b_z = (tl.where(m_usable, b_m, 0.0) - b_mean[:, None]) / b_over
    b_z = tl.where((b_deviation == 0)[:, None], 0.0, b_z)
    b_z = tl.minimum(tl.maximum(b_z, -clamp), clamp)
    return tl.where(m_usable, b_z, -clamp)


@triton.jit
def passage_z(
    p_maxima, p_visible, p_successor, o_q, o_n, m_q, m_n, stride_token, stride_block,
    b_mean, b_deviation, clamp, PASSAGE: tl.constexpr,
):  # fmt: skip
    """Z [Q, N] of passages: the larger of a block's and, where there is one, its successor's."""
    b_z = standardised(
        p_maxima, p_visible, o_q, o_n, m_q, m_n, stride_token, stride_block, b_mean, b_deviation,
        clamp,
    )  # fmt: skip
    if PASSAGE == 2:
        o_next = tl.load(p_successor + o_n, mask=m_n, other=-1)
        m_next = m_n & (o_next >= 0)
        b_next = standardised(
            p_maxima, p_visible, o_q, o_next, m_q, m_next, stride_token, stride_block, b_mean,
            b_deviation, clamp,
        )  # fmt: skip
        b_z = tl.where(m_next[None, :], tl.maximum(b_z, b_next), b_z)
    return b_z
