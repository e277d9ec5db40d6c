"""Scores of what is asked in parts, as Triton kernels; `cmr.kernels.parts` is the specification."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, launch, next_power
from cmr.kernels.gpu._statistics import spread
from cmr.kernels.search.parts import Numbers, PartScores, Windows

BLOCKS, TOKENS = 64, 16
"""Blocks and query tokens that a program looks at at once."""
BLOCKS_OF_A_ROW = 1024
"""Blocks that a program looks at at once for a single token or part."""
TINY = torch.finfo(torch.float32).tiny


@triton.jit
def token_weights_kernel(
    p_z, p_rarity, p_weights,
    tokens, blocks,
    POWER: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One query token a program: what it weighs, by its best value and how rare its word is."""
    i_batch = tl.program_id(1).to(tl.int64)
    i_at = i_batch * tokens + tl.program_id(0)
    peak = tl.full([], float("-inf"), tl.float32)
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < blocks
        b_z = tl.load(p_z + i_at * blocks + o_n, mask=m_n, other=float("-inf"))
        peak = tl.maximum(peak, tl.max(b_z, 0))
    over = tl.maximum(peak, 0.0)
    weight = over * 0.0 + 1.0
    if POWER > 0:
        weight = over
    if POWER > 1:
        weight = over * over
    # Of a single block, or several that are the same, none stands out: they fit equally well.
    weight = tl.where(peak == 0, 1.0, weight)
    tl.store(p_weights + i_at, weight * (1.0 + tl.load(p_rarity + i_at)))


@triton.jit
def part_lines_kernel(
    p_z, p_of, p_weights, p_words, p_inside, p_totals, p_shares, p_lines,
    tokens, blocks, parts, tiny,
    STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Some blocks and one part a program: means of passages and windows, words of windows."""
    i_batch = tl.program_id(2).to(tl.int64)
    i_row = i_batch * parts + tl.program_id(1)
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < blocks
    # A query has few tokens: every program adds them up anew, and none waits for another.
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, tokens, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_own = o_q < tokens
        o_at = i_batch * tokens + o_q
        m_own = m_own & (tl.load(p_of + o_at, mask=m_own, other=-1) == tl.program_id(1))
        total += tl.sum(tl.load(p_weights + o_at, mask=m_own, other=0.0), 0)
    over = tl.maximum(total, tiny)
    b_near = tl.zeros([BLOCK_N], tl.float32)
    b_wide = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, tokens, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = o_q < tokens
        o_at = i_batch * tokens + o_q
        m_own = m_q & (tl.load(p_of + o_at, mask=m_q, other=-1) == tl.program_id(1))
        b_share = tl.load(p_weights + o_at, mask=m_own, other=0.0) / over  # [Q]
        # One of the programs of a part writes what its tokens weigh in it.
        m_first = o_q < tl.where(tl.program_id(0) == 0, tokens, 0)
        tl.store(p_shares + i_row * tokens + o_q, b_share, mask=m_first)
        p_row = p_z + o_at[None, :] * blocks
        m_some = m_n[:, None] & m_own[None, :]
        b_z = tl.load(p_row + o_n[:, None], mask=m_some, other=0.0)  # [N, Q]
        b_near += tl.sum(b_share[None, :] * b_z, 1)
        # A window's first passage is its own, which was loaded already.
        for i_step in tl.static_range(1, STEPS):
            o_next = tl.load(p_inside + o_n * STEPS + i_step, mask=m_n, other=0)
            m_next = m_some & (o_next < blocks)[:, None]
            b_next = tl.load(p_row + o_next[:, None], mask=m_next, other=-float("inf"))
            b_z = tl.maximum(b_z, b_next)
        b_wide += tl.sum(b_share[None, :] * b_z, 1)
    if tl.program_id(0) == 0:
        tl.store(p_totals + i_row, total)
    b_said = tl.load(p_words + i_row * blocks + o_n, mask=m_n, other=0.0)
    for i_step in tl.static_range(1, STEPS):
        o_next = tl.load(p_inside + o_n * STEPS + i_step, mask=m_n, other=0)
        m_next = m_n & (o_next < blocks)
        b_said += tl.load(p_words + i_row * blocks + o_next, mask=m_next, other=0.0)
    size = tl.cast(parts, tl.int64) * blocks
    p_to = p_lines + (i_batch * 3 * parts + tl.program_id(1)) * blocks + o_n
    tl.store(p_to, b_near, mask=m_n)
    tl.store(p_to + size, b_wide, mask=m_n)
    tl.store(p_to + 2 * size, b_said, mask=m_n)


@triton.jit
def deviations(b_x, m_usable, mean, deviation, clamp):
    """Values [N] as deviations within `clamp`; of what does not count the least."""
    b_z = tl.where(deviation == 0, 0.0, (b_x - mean) / tl.where(deviation == 0, 1.0, deviation))
    return tl.where(m_usable, tl.minimum(tl.maximum(b_z, -clamp), clamp), -clamp)


@triton.jit
def part_scores_kernel(
    p_seen, p_words, p_holders, p_lined, p_within, p_totals, p_lines,
    blocks, parts, clamp, words_weight, lined_words, context, unlimited,
    HOLDERS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One part a program: of means and words, how well passages fit alone, and all in all."""
    i_batch = tl.program_id(1).to(tl.int64)
    i_row = i_batch * parts + tl.program_id(0)
    p_row = p_seen + i_batch * blocks
    p_word = p_words + i_row * blocks
    p_near = p_lines + (i_batch * 3 * parts + tl.program_id(0)) * blocks
    p_wide = p_near + tl.cast(parts, tl.int64) * blocks
    p_said = p_wide + tl.cast(parts, tl.int64) * blocks
    # What a part's program adds up it needs itself: no other launch has to wait for its sums.
    near_mean, near_deviation = spread(p_near, p_row, blocks, 1, BLOCK_N)
    wide_mean, wide_deviation = spread(p_wide, p_row, blocks, 1, BLOCK_N)
    word_mean, word_deviation = spread(p_word, p_row, blocks, 1, BLOCK_N)
    said_mean, said_deviation = spread(p_said, p_row, blocks, 1, BLOCK_N)
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        m_seen = tl.load(p_row + o_n, mask=m_n, other=0) != 0
        m_lined = m_seen & (tl.load(p_lined + o_n, mask=m_n, other=0) != 0)
        m_within = tl.load(p_within + o_n, mask=m_n, other=0) != 0
        b_near = tl.load(p_near + o_n, mask=m_n, other=0.0)
        b_wide = tl.load(p_wide + o_n, mask=m_n, other=0.0)
        b_word = tl.load(p_word + o_n, mask=m_n, other=0.0)
        b_said = tl.load(p_said + o_n, mask=m_n, other=0.0)
        b_near = deviations(b_near, m_seen, near_mean, near_deviation, unlimited)
        b_word = deviations(b_word, m_seen, word_mean, word_deviation, clamp)
        b_near += tl.where(m_within, lined_words, words_weight) * b_word
        b_wide = deviations(b_wide, m_seen, wide_mean, wide_deviation, unlimited)
        b_wide += lined_words * deviations(b_said, m_seen, said_mean, said_deviation, clamp)
        tl.store(p_near + o_n, b_near, mask=m_n)
        tl.store(p_wide + o_n, tl.where(m_lined, b_wide, -float("inf")), mask=m_n)
    # What one lane wrote others read from here on: of the windows around a passage, and its sums.
    tl.debug_barrier()
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        b_near = tl.load(p_near + o_n, mask=m_n, other=-float("inf"))
        b_best = tl.full([BLOCK_N], -float("inf"), tl.float32)
        for i in tl.static_range(HOLDERS):
            o_from = tl.load(p_holders + o_n * HOLDERS + i, mask=m_n, other=0)
            b_fit = tl.load(p_wide + o_from, mask=m_n & (o_from < blocks), other=-float("inf"))
            b_best = tl.maximum(b_best, b_fit)
        b_best = tl.where(b_best > -float("inf"), b_best, b_near)
        tl.store(p_said + o_n, b_near + context * b_best, mask=m_n)
    tl.debug_barrier()
    near_mean, near_deviation = spread(p_near, p_row, blocks, 1, BLOCK_N)
    both_mean, both_deviation = spread(p_said, p_row, blocks, 1, BLOCK_N)
    tl.debug_barrier()
    asks = tl.load(p_totals + i_row) > 0  # of a part without a token nothing is left
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        m_asked = tl.where(asks, tl.load(p_row + o_n, mask=m_n, other=0), 0) != 0
        b_near = tl.load(p_near + o_n, mask=m_n, other=0.0)
        b_both = tl.load(p_said + o_n, mask=m_n, other=0.0)
        b_near = deviations(b_near, m_asked, near_mean, near_deviation, unlimited)
        b_both = deviations(b_both, m_asked, both_mean, both_deviation, unlimited)
        tl.store(p_near + o_n, b_near, mask=m_n)
        tl.store(p_said + o_n, b_both, mask=m_n)


@triton.jit
def best_part_kernel(
    p_marked, p_lines, p_line, p_winner,
    blocks, parts, mark,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Some blocks a program: the best score that a part gives each, and which part that is."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < blocks
    b_line = tl.full([BLOCK_N], -float("inf"), tl.float32)
    b_winner = tl.zeros([BLOCK_N], tl.int64)
    for i_part in range(0, parts):
        p_score = p_lines + ((i_batch * 3 + 2) * parts + i_part) * blocks + o_n
        favour = tl.where(tl.load(p_marked + i_batch * parts + i_part) != 0, mark, 1.0)
        b_score = tl.load(p_score, mask=m_n, other=-float("inf")) * favour
        # Only a higher score wins: of parts that are level the first one does.
        m_more = b_score > b_line
        b_line = tl.where(m_more, b_score, b_line)
        b_winner = tl.where(m_more, i_part, b_winner)
    tl.store(p_line + i_batch * blocks + o_n, b_line, mask=m_n)
    tl.store(p_winner + i_batch * blocks + o_n, b_winner, mask=m_n)


@triton.jit
def part_certainty_kernel(
    p_seen, p_totals, p_lines, p_line, p_winner, p_certainty,
    blocks, parts, null_base, null_blocks, null_parts, few_blocks, few_certainty,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One row a program: how far its best passage stands out by itself."""
    i_batch = tl.program_id(0).to(tl.int64)
    best = tl.full([], -float("inf"), tl.float32)
    place = tl.full([], 0, tl.int64)
    count = tl.full([], 0.0, tl.float32)
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        m_seen = tl.load(p_seen + i_batch * blocks + o_n, mask=m_n, other=0) != 0
        count += tl.sum(m_seen.to(tl.float32), 0)
        b_line = tl.load(p_line + i_batch * blocks + o_n, mask=m_n, other=-float("inf"))
        most = tl.max(b_line, 0)
        first = tl.min(tl.where(m_n & (b_line == most), o_n, blocks), 0)
        place = tl.where(most > best, first, place)
        best = tl.maximum(best, most)
    asking = tl.full([], 0.0, tl.float32)
    for start in range(0, parts, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        b_total = tl.load(p_totals + i_batch * parts + o_p, mask=o_p < parts, other=0.0)
        asking += tl.sum((b_total > 0).to(tl.float32), 0)
    part = tl.load(p_winner + i_batch * blocks + place)
    alone = tl.load(p_lines + (i_batch * 3 * parts + part) * blocks + place)
    # Among few blocks some block always stands out, which says nothing of how well it fits.
    null = null_base + null_blocks * tl.log(tl.maximum(count, few_blocks))
    null += null_parts * tl.log(tl.maximum(asking, 1.0))
    sure = tl.where(count < few_blocks, few_certainty, alone / null)
    tl.store(p_certainty + i_batch, tl.where(alone > -float("inf"), sure, 0.0))


def part_scores(*given: Any) -> None:
    """Launches the tokens' weights, the parts' means, fits and scores, and what comes of them."""
    (z, seen, of, marked), (rarity, words), windows = given[:4], given[4:6], Windows(*given[6:10])
    numbers, (weights, totals, lines) = Numbers(*given[10:21]), given[21:24]
    out = PartScores(*given[24:])
    batch, tokens, blocks = z.shape
    parts = marked.shape[1]
    shared: dict[str, Any] = {"device": z.device, "blocks": blocks}
    z, words = z.contiguous(), words.contiguous()
    seen, marked, lined, within = (
        flags.contiguous().view(torch.uint8)
        for flags in (seen, marked, windows.lined, windows.within)
    )
    wide = min(BLOCKS_OF_A_ROW, max(16, next_power(blocks)))
    launch(
        token_weights_kernel,
        (tokens, batch),
        **shared,
        warps=4,
        p_z=z,
        p_rarity=rarity.contiguous(),
        p_weights=weights,
        tokens=tokens,
        POWER=numbers.peak_power,
        BLOCK_N=wide,
    )
    launch(
        part_lines_kernel,
        (cdiv(blocks, BLOCKS), parts, batch),
        **shared,
        warps=4,
        p_z=z,
        p_of=of.contiguous(),
        p_weights=weights,
        p_words=words,
        p_inside=windows.inside,
        p_totals=totals,
        p_shares=out.shares,
        p_lines=lines,
        tokens=tokens,
        parts=parts,
        tiny=TINY,
        STEPS=windows.inside.shape[1],
        BLOCK_N=BLOCKS,
        BLOCK_Q=TOKENS,
    )
    launch(
        part_scores_kernel,
        (parts, batch),
        **shared,
        warps=4,
        p_seen=seen,
        p_words=words,
        p_holders=windows.holders,
        p_lined=lined,
        p_within=within,
        p_totals=totals,
        p_lines=lines,
        parts=parts,
        clamp=numbers.clamp,
        words_weight=numbers.words,
        lined_words=numbers.lined_words,
        context=numbers.context,
        unlimited=float("inf"),
        HOLDERS=windows.holders.shape[1],
        BLOCK_N=wide,
    )
    launch(
        best_part_kernel,
        (cdiv(blocks, BLOCKS), batch),
        **shared,
        warps=2,
        p_marked=marked,
        p_lines=lines,
        p_line=out.line,
        p_winner=out.winner,
        parts=parts,
        mark=numbers.marked,
        BLOCK_N=BLOCKS,
    )
    launch(
        part_certainty_kernel,
        (batch,),
        **shared,
        warps=4,
        p_seen=seen,
        p_totals=totals,
        p_lines=lines,
        p_line=out.line,
        p_winner=out.winner,
        p_certainty=out.certainty,
        parts=parts,
        null_base=numbers.null_base,
        null_blocks=numbers.null_blocks,
        null_parts=numbers.null_parts,
        few_blocks=float(numbers.few_blocks),
        few_certainty=numbers.few_certainty,
        BLOCK_N=wide,
        BLOCK_P=16,
    )
