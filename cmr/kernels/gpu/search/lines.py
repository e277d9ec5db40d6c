"""Where lines end, as a Triton kernel; `cmr.kernels.search.lines` is the specification."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import launch, next_power


@triton.jit
def block_at(p_positions, p_token_ids, p_breaks, slot, size, last_id, BLOCK: tl.constexpr):
    """Positions [BLOCK] of a block's tokens, -1 for none, and which of them end a line."""
    o_at = tl.arange(0, BLOCK)
    m_at = o_at < tl.where(slot >= 0, size, 0)
    b_place = tl.load(p_positions + slot * size + o_at, mask=m_at, other=-1)
    b_id = tl.load(p_token_ids + slot * size + o_at, mask=m_at, other=-1)
    b_id = tl.where((b_id < 0) | (b_id > last_id), last_id, b_id)
    b_ends = tl.load(p_breaks + b_id, mask=m_at, other=0)
    return b_place, (b_ends != 0) & (b_place >= 0)


@triton.jit
def within_lines_kernel(
    p_starts, p_successor, p_predecessor, p_positions, p_token_ids, p_breaks, p_out,
    size, last_id, latest,
    PASSAGE: tl.constexpr, NEIGHBOURS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One passage a program: from its first block back, then from there on."""
    i_at = tl.program_id(0).to(tl.int64)
    start = tl.load(p_starts + i_at)
    first = tl.full([], 0, tl.int64)
    highest = tl.full([], -1, tl.int64)
    lowest = tl.full([], 0, tl.int64) + latest
    last = lowest
    # Links are followed one by one, as a text's blocks lie anywhere; -1 leads to -1.
    slot = start
    for _ in tl.static_range(NEIGHBOURS):
        slot = tl.load(p_predecessor + slot, mask=slot >= 0, other=-1)
        b_place, m_ends = block_at(p_positions, p_token_ids, p_breaks, slot, size, last_id, BLOCK)
        first = tl.maximum(first, tl.max(tl.where(m_ends, b_place + 1, 0), 0))
        lowest = tl.minimum(lowest, tl.min(tl.where(b_place >= 0, b_place, latest), 0))
        highest = tl.maximum(highest, tl.max(b_place, 0))
    slot = start
    for i in tl.static_range(PASSAGE + NEIGHBOURS):
        b_place, m_ends = block_at(p_positions, p_token_ids, p_breaks, slot, size, last_id, BLOCK)
        # A line that ends with the passage's last token goes on in no neighbour.
        m_behind = m_ends & ((tl.arange(0, BLOCK) == size - 1) | (i >= PASSAGE))
        if i >= PASSAGE - 1:
            last = tl.minimum(last, tl.min(tl.where(m_behind, b_place, latest), 0))
        lowest = tl.minimum(lowest, tl.min(tl.where(b_place >= 0, b_place, latest), 0))
        highest = tl.maximum(highest, tl.max(b_place, 0))
        slot = tl.load(p_successor + slot, mask=slot >= 0, other=-1)
    # Never beyond what stands there: another passage may.
    tl.store(p_out + 2 * i_at, tl.maximum(first, lowest))
    tl.store(p_out + 2 * i_at + 1, tl.minimum(last, highest))


def within_lines(starts: torch.Tensor, *rest: Any) -> None:
    """Launches `within_lines_kernel`, one program a passage."""
    successor, predecessor, positions, token_ids, breaks, passage, neighbours, out = rest
    size = token_ids.shape[1]
    launch(
        within_lines_kernel,
        (starts.numel(),),
        device=starts.device,
        warps=1,
        p_starts=starts.contiguous(),
        p_successor=successor,
        p_predecessor=predecessor,
        p_positions=positions,
        p_token_ids=token_ids,
        p_breaks=breaks.view(torch.uint8),
        p_out=out,
        size=size,
        last_id=len(breaks) - 1,
        latest=torch.iinfo(torch.int64).max,
        PASSAGE=passage,
        NEIGHBOURS=neighbours,
        BLOCK=next_power(size),
    )
