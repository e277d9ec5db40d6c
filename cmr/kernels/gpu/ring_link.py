"""Linking new blocks as a Triton kernel; `cmr.kernels.ring_link` is the specification."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from cmr.kernels.gpu._launch import in_rows, launch, next_power
from cmr.kernels.ring_link import Columns

SCAN = 1024
"""Blocks of a batch that a program looks at in one step."""


@triton.jit
def ring_link_kernel(
    p_cursor, p_session, p_created, p_successor, p_predecessor, p_last_access, p_access_count,
    p_relevance, p_token_ids, p_positions,
    p_slots, p_predecessors, p_numbers, p_sessions, p_pick,
    p_new_token_ids, p_new_positions, p_new_relevance,
    count, tokens, blocks, stride_ids, stride_places,
    SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One new block a program; it alone writes its slot, and each neighbour has one writer.

    A neighbour of what stood in the slot is cut off by this program, unless a program of this batch
    overwrites it, or links a block to it.
    """
    i = tl.program_id(0)
    slot = tl.load(p_slots + i)
    after = tl.load(p_successor + slot)  # of what stood there
    before = tl.load(p_predecessor + slot)
    new_before = tl.load(p_predecessors + i)
    # Every program looks through the whole batch: links depend on what the others overwrite, and
    # programs of a launch cannot wait for each other. Their own slot is the only one they store to,
    # but for a neighbour outside of the batch, whose one writer is found here.
    b_next = tl.full([BLOCK], -1, tl.int64)
    b_cut_after = tl.full([BLOCK], 1, tl.int32)
    b_cut_before = tl.full([BLOCK], 1, tl.int32)
    b_outside = tl.full([BLOCK], 1, tl.int32)
    for start in range(0, count, BLOCK):
        o_j = start + tl.arange(0, BLOCK)
        m_j = o_j < count
        b_slot = tl.load(p_slots + o_j, mask=m_j, other=-1)  # [BLOCK]
        b_link = tl.load(p_predecessors + o_j, mask=m_j, other=-1)  # [BLOCK]
        b_next = tl.where(m_j & (b_link == slot), b_slot, b_next)
        b_cut_after = tl.where(m_j & (b_slot == after), 0, b_cut_after)
        b_cut_before = tl.where(m_j & ((b_slot == before) | (b_link == before)), 0, b_cut_before)
        b_outside = tl.where(m_j & (b_slot == new_before), 0, b_outside)
    cut_after = (tl.min(b_cut_after, 0) > 0) & (after >= 0)
    cut_before = (tl.min(b_cut_before, 0) > 0) & (before >= 0)
    outside = (tl.min(b_outside, 0) > 0) & (new_before >= 0)
    number = tl.load(p_numbers + i)
    i_from = tl.load(p_pick + i)
    relevance = 0.0
    if p_new_relevance is not None:
        relevance = tl.load(p_new_relevance + i_from).to(tl.float32)
    tl.debug_barrier()  # every warp has read the slot before one of them writes it
    tl.store(p_successor + slot, tl.max(b_next, 0))
    tl.store(p_predecessor + slot, new_before)
    tl.store(p_predecessor + after, -1, mask=cut_after)
    tl.store(p_successor + before, -1, mask=cut_before)
    tl.store(p_successor + new_before, slot, mask=outside)
    tl.store(p_session + slot, tl.load(p_sessions + i))
    tl.store(p_created + slot, number)
    tl.store(p_last_access + slot, 0)
    tl.store(p_access_count + slot, 0)
    tl.store(p_relevance + slot, relevance)
    tl.store(p_cursor, number, mask=i == count - 1)  # the last block's program alone
    row = i_from // blocks
    o_t = tl.arange(0, BLOCK_T)
    o_from = (i_from - row * blocks) * SIZE + o_t
    m_from = (o_t < SIZE) & (o_from < tokens)
    b_ids = tl.load(p_new_token_ids + row * stride_ids + o_from, mask=m_from, other=0)
    b_places = tl.load(p_new_positions + row * stride_places + o_from, mask=m_from, other=-1)
    tl.store(p_token_ids + slot * SIZE + o_t, b_ids.to(tl.int64), mask=o_t < SIZE)
    tl.store(p_positions + slot * SIZE + o_t, b_places.to(tl.int64), mask=o_t < SIZE)


def ring_link(*given: Any) -> None:
    """Launches `ring_link_kernel`, one program a new block."""
    columns, (slots, predecessors, numbers) = Columns(*given[:10]), given[10:13]
    sessions, pick, new_token_ids, new_positions, new_relevance = given[13:]
    size = columns.token_ids.shape[1]
    tokens = new_token_ids.shape[1]
    new_token_ids, new_positions = in_rows(new_token_ids), in_rows(new_positions)
    launch(
        ring_link_kernel,
        (slots.shape[0],),
        device=slots.device,
        warps=1 if slots.shape[0] <= 128 else 4,
        **{f"p_{name}": column for name, column in columns._asdict().items()},
        p_slots=slots,
        p_predecessors=predecessors,
        p_numbers=numbers,
        p_sessions=sessions,
        p_pick=pick,
        p_new_token_ids=new_token_ids,
        p_new_positions=new_positions,
        p_new_relevance=None if new_relevance is None else new_relevance.contiguous(),
        count=slots.shape[0],
        tokens=tokens,
        blocks=-(-tokens // size),
        stride_ids=new_token_ids.stride(0),
        stride_places=new_positions.stride(0),
        SIZE=size,
        BLOCK_T=next_power(size),
        BLOCK=128 if slots.shape[0] <= 128 else SCAN,
    )
