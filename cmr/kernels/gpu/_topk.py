"""Pieces of kernels: scores packed with their slots, a running top-k, 8-bit codes, cosines.

A score and its slot share one int64 that sorts like (score, -slot): see `reference/select.py`. What
may not be chosen is `LOWEST`, and a running top-k starts as distinct values just above it, so that
all its values always differ.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST: tl.constexpr = tl.constexpr(-0x7FFFFFFFFFFFFFFF)


@triton.jit
def pack(b_score, b_slot):
    """Scores float32 with slots int64 of the same shape; NaN and -inf become `LOWEST`."""
    m_usable = (b_score == b_score) & (b_score > float("-inf"))
    b_bits = (b_score + 0.0).to(tl.int32, bitcast=True)
    b_bits = tl.where(b_score == 0.0, 0, b_bits)  # -0 ties with 0
    # Bits of negative floats rise as they fall: all but the sign are turned round. The slot's
    # complement lies below, so that of equal scores the lowest slot is the largest.
    b_ordered = tl.where(b_bits < 0, b_bits ^ 0x7FFFFFFF, b_bits).to(tl.int64)
    return tl.where(m_usable, (b_ordered << 32) | (0xFFFFFFFF - b_slot.to(tl.int64)), LOWEST)


@triton.jit
def unpack_score(b_packed):
    """The score; -inf where nothing was chosen."""
    b_ordered = (b_packed >> 32).to(tl.int32)
    b_bits = tl.where(b_ordered < 0, b_ordered ^ 0x7FFFFFFF, b_ordered)
    b_score = b_bits.to(tl.float32, bitcast=True)
    return tl.where(chosen(b_packed), b_score, float("-inf"))


@triton.jit
def unpack_slot(b_packed):
    """The slot; -1 where nothing was chosen."""
    return tl.where(chosen(b_packed), 0xFFFFFFFF - (b_packed & 0xFFFFFFFF), -1)


@triton.jit
def chosen(b_packed):
    """Whether it is a score: all finite ones and +inf are far above `LOWEST`."""
    return b_packed >= -0x7FFFFFFF00000000


@triton.jit
def empty_run(ROWS: tl.constexpr, K: tl.constexpr):
    """A running top-k of nothing, [ROWS, K]."""
    return tl.zeros([ROWS, K], tl.int64) + (LOWEST + 1 + tl.arange(0, K)[None, :].to(tl.int64))


@triton.jit
def insert(b_run, b_new):
    """The K largest of a running top-k [ROWS, K] and new packed values [ROWS, N], unordered.

    As many rounds as some row has values above its least one: few once the run has settled.
    """
    b_least = tl.min(b_run, 1)
    b_most = tl.max(b_new, 1)
    # Each round puts a row's best new value in place of its least kept one. All packed values
    # differ, so that one place is meant each time.
    while tl.max((b_most > b_least).to(tl.int32), 0) > 0:
        m_place = (b_run == b_least[:, None]) & (b_most > b_least)[:, None]
        b_run = tl.where(m_place, b_most[:, None], b_run)
        b_new = tl.where(b_new == b_most[:, None], LOWEST, b_new)
        b_least = tl.min(b_run, 1)
        b_most = tl.max(b_new, 1)
    return b_run


@triton.jit
def rank(b_run, K: tl.constexpr):
    """Place of each of the K distinct values [K] in falling order."""
    return tl.sum((b_run[None, :] > b_run[:, None]).to(tl.int32), 1)


@triton.jit
def decode(b_x, FP8: tl.constexpr, dtype: tl.constexpr):
    """What was loaded, in `dtype`: as it is, int8 codes, or e4m3 codes given as their bits.

    The bits of an e4m3 number, moved to those of float16, are the number over 256: its exponent's
    bias is 8 less.
    """
    if FP8:
        b_bits = b_x.to(tl.int16)
        b_half = (((b_bits & 0x80) << 8) | ((b_bits & 0x7F) << 7)).to(tl.int16)
        b_value = b_half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where((b_bits & 0x7F) == 0x7F, float("nan"), b_value).to(dtype)
    else:
        return b_x.to(dtype)


@triton.jit
def inverse_norms(p_row, m_row, HIDDEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_H: tl.constexpr):
    """1 / max(norm, 1e-12) of rows at the pointers [ROWS] whose features lie side by side."""
    b_sum = tl.zeros([ROWS], tl.float32)
    for start in range(0, HIDDEN, BLOCK_H):
        o_h = start + tl.arange(0, BLOCK_H)
        m_x = m_row[:, None] & (o_h < HIDDEN)[None, :]
        b_x = tl.load(p_row[:, None] + o_h[None, :], mask=m_x, other=0.0)  # [ROWS, H]
        b_x = b_x.to(tl.float32)
        b_sum += tl.sum(b_x * b_x, 1)
    b_norm = tl.sqrt(b_sum)
    return 1.0 / tl.where(b_norm < 1e-12, 1e-12, b_norm)
