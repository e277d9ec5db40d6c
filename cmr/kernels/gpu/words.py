"""The words of a query in passages as Triton kernels; `cmr.kernels.words` is the specification."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, launch, next_power
from cmr.kernels.words import NO_WORD, SATURATION

BLOCKS, TOKENS = 64, 32
"""Blocks and query tokens that a program looks at at once."""
BLOCKS_OF_A_ROW = 1024
"""Blocks that a program looks at at once for a single query token."""


@triton.jit
def classes_at(p_ids, p_classes, o_at, m_at, last):
    """Class of each token at some places; of numbers that are no token's the last one's."""
    b_id = tl.load(p_ids + o_at, mask=m_at, other=-1)
    b_id = tl.where((b_id < 0) | (b_id > last), last, b_id)
    return tl.load(p_classes + b_id, mask=m_at, other=0)


@triton.jit
def hits(
    p_token_ids, p_positions, p_seen, p_classes, o_n, m_n, b_asked, block, last,
    NONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """How often each query token's word [Q] stands in blocks `o_n` [N] that the row may see."""
    b_count = tl.zeros([BLOCK_N, BLOCK_Q], tl.float32)
    m_n = m_n & (tl.load(p_seen + o_n, mask=m_n, other=0) != 0)
    for i in range(0, block):
        o_at = o_n * block + i
        m_at = m_n & (tl.load(p_positions + o_at, mask=m_n, other=-1) >= 0)
        b_class = tl.where(m_at, classes_at(p_token_ids, p_classes, o_at, m_at, last), NONE)
        m_same = (b_class[:, None] == b_asked[None, :]) & (b_class != NONE)[:, None]
        b_count += m_same.to(tl.float32)
    return b_count


@triton.jit
def word_counts_kernel(
    p_query, p_token_ids, p_positions, p_successor, p_seen, p_classes, p_counts,
    tokens, blocks, block, last,
    NONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Some blocks and query tokens a program: words in each block and its successor."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_q = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_n = o_n < blocks
    m_q = o_q < tokens
    b_asked = classes_at(p_query, p_classes, i_batch * tokens + o_q, m_q, last)  # [Q]
    p_row = p_seen + i_batch * blocks
    b_count = hits(
        p_token_ids, p_positions, p_row, p_classes, o_n, m_n, b_asked, block, last,
        NONE, BLOCK_N, BLOCK_Q,
    )  # fmt: skip
    o_next = tl.load(p_successor + o_n, mask=m_n, other=-1)
    b_count += hits(
        p_token_ids, p_positions, p_row, p_classes, o_next, m_n & (o_next >= 0), b_asked, block,
        last, NONE, BLOCK_N, BLOCK_Q,
    )  # fmt: skip
    p_to = p_counts + (i_batch * tokens + o_q)[None, :] * blocks + o_n[:, None]
    tl.store(p_to, b_count, mask=m_n[:, None] & m_q[None, :])  # [N, Q]


@triton.jit
def word_weights_kernel(
    p_query, p_of, p_seen, p_classes, p_counts, p_weights, p_rarity,
    tokens, blocks, last,
    NONE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One query token a program: how rare its word is, and whether it is the first of its part."""
    i_batch = tl.program_id(1).to(tl.int64)
    i_token = tl.program_id(0)
    i_at = i_batch * tokens + i_token
    total = tl.full([], 0.0, tl.float32)
    holding = tl.full([], 0.0, tl.float32)
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < blocks
        b_seen = tl.load(p_seen + i_batch * blocks + o_n, mask=m_n, other=0) != 0
        b_count = tl.load(p_counts + i_at * blocks + o_n, mask=m_n, other=0.0)  # [N]
        total += tl.sum(b_seen.to(tl.float32), 0)
        holding += tl.sum((b_seen & (b_count > 0)).to(tl.float32), 0)
    own = classes_at(p_query, p_classes, i_at, True, last)
    part = tl.load(p_of + i_at)
    asks = 0
    before = 0
    for start in range(0, tokens, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = o_q < tokens
        o_row = i_batch * tokens + o_q
        m_same = m_q & (classes_at(p_query, p_classes, o_row, m_q, last) == own)
        b_part = tl.load(p_of + o_row, mask=m_q, other=-1)
        asks = tl.maximum(asks, tl.max((m_same & (b_part >= 0)).to(tl.int32), 0))
        m_before = m_same & (b_part == part) & (o_q < i_token)
        before = tl.maximum(before, tl.max(m_before.to(tl.int32), 0))
    rare = tl.log(1.0 + (total - holding + 0.5) / (holding + 0.5))
    word = (own != NONE) & (asks > 0)
    tl.store(p_rarity + i_at, tl.where(word, rare, 0.5 / (total + 0.5)))
    # A word counts once in its part, however often it is asked.
    tl.store(p_weights + i_at, tl.where(word & (part >= 0) & (before == 0), rare, 0.0))


@triton.jit
def word_scores_kernel(
    p_of, p_counts, p_weights, p_scores,
    tokens, blocks, parts, saturation,
    BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Some blocks and one part a program: BM25 of its words."""
    i_batch = tl.program_id(2).to(tl.int64)
    i_part = tl.program_id(1)
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < blocks
    b_score = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, tokens, BLOCK_Q):
        o_row = i_batch * tokens + start + tl.arange(0, BLOCK_Q)
        m_q = start + tl.arange(0, BLOCK_Q) < tokens
        m_q = m_q & (tl.load(p_of + o_row, mask=m_q, other=-1) == i_part)
        b_weight = tl.load(p_weights + o_row, mask=m_q, other=0.0)  # [Q]
        m_q = m_q & (b_weight != 0)
        p_count = p_counts + o_row[None, :] * blocks + o_n[:, None]
        b_count = tl.load(p_count, mask=m_n[:, None] & m_q[None, :], other=0.0)  # [N, Q]
        b_says = b_count * (saturation + 1.0) / (b_count + saturation)
        b_score += tl.sum(b_weight[None, :] * b_says, 1)
    tl.store(p_scores + (i_batch * parts + i_part) * blocks + o_n, b_score, mask=m_n)


def words(*given: Any) -> None:
    """Launches the counts, then what each word weighs, then the scores of each part."""
    query, of, token_ids, positions, successor, seen, classes = given[:7]
    counts, weights, rarity, scores = given[8:]
    batch, tokens = query.shape
    blocks, block = token_ids.shape
    parts = scores.shape[1]
    shared: dict[str, Any] = {
        "device": query.device,
        "warps": 4,
        "p_counts": counts,
        "tokens": tokens,
        "blocks": blocks,
    }
    query, of = query.contiguous(), of.contiguous()
    seen = seen.contiguous().view(torch.uint8)
    last = len(classes) - 1
    launch(
        word_counts_kernel,
        (cdiv(blocks, BLOCKS), batch, cdiv(tokens, TOKENS)),
        **shared,
        p_query=query,
        p_token_ids=token_ids,
        p_positions=positions,
        p_successor=successor,
        p_seen=seen,
        p_classes=classes,
        block=block,
        last=last,
        NONE=NO_WORD,
        BLOCK_N=BLOCKS,
        BLOCK_Q=TOKENS,
    )
    launch(
        word_weights_kernel,
        (tokens, batch),
        **shared,
        p_query=query,
        p_of=of,
        p_seen=seen,
        p_classes=classes,
        p_weights=weights,
        p_rarity=rarity,
        last=last,
        NONE=NO_WORD,
        BLOCK_N=min(BLOCKS_OF_A_ROW, max(16, next_power(blocks))),
        BLOCK_Q=min(128, max(16, next_power(tokens))),
    )
    launch(
        word_scores_kernel,
        (cdiv(blocks, BLOCKS), parts, batch),
        **shared,
        p_of=of,
        p_weights=weights,
        p_scores=scores,
        parts=parts,
        saturation=SATURATION,
        BLOCK_N=BLOCKS,
        BLOCK_Q=TOKENS,
    )
