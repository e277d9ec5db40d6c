"""Tokens of chosen blocks, as Triton kernels; `cmr.kernels.search.recalled` specifies them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import launch, next_power, strides
from cmr.kernels.search.recalled import Recalled, Sure, Used

FEATURES = 64
"""Features of an index vector that a program looks at at once."""
ENTRIES = 32
"""Entries of a table that a program looks at at once."""


@triton.jit
def recalled_kernel(
    p_table, p_within, p_positions, p_token_ids, p_index, p_count, p_last, p_certainty,
    p_mask, p_read, p_ids, p_places, p_bias,
    clock, low, width, most, entries, passages, size, hidden,
    stride_slot, stride_token, stride_feature,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One block of a table a program."""
    i_at = tl.program_id(0).to(tl.int64)
    i_batch = i_at // entries
    slot = tl.load(p_table + i_at)
    # Several rows may name a block. Whole numbers: the order of what is added changes nothing.
    tl.atomic_add(p_count + slot, tl.full([], 1, tl.int64), mask=slot >= 0)
    tl.atomic_max(p_last + slot, tl.cast(clock, tl.int64), mask=slot >= 0)
    if i_at % entries == 0:
        share = (tl.load(p_certainty + i_batch) - low) / width
        tl.store(p_bias + i_batch, most * tl.minimum(tl.maximum(share, 0.0), 1.0))
    o_at = tl.arange(0, BLOCK)
    m_at = o_at < tl.where(slot >= 0, size, 0)
    b_place = tl.load(p_positions + slot * size + o_at, mask=m_at, other=-1)  # [BLOCK]
    m_wanted = b_place >= 0
    if p_within is not None:
        b_some = tl.zeros([BLOCK], tl.int32)
        for i in range(0, passages):
            first = tl.load(p_within + (i_batch * passages + i) * 2)
            last = tl.load(p_within + (i_batch * passages + i) * 2 + 1)
            b_some = tl.where((b_place >= first) & (b_place <= last), 1, b_some)
        m_wanted = m_wanted & (b_some > 0)
    # An id that is not read is not looked at: nothing of another text may come along.
    b_id = tl.load(p_token_ids + slot * size + o_at, mask=m_at & m_wanted, other=0)
    o_to = i_at * size + o_at
    m_to = o_at < size
    tl.store(p_ids + o_to, b_id, mask=m_to)
    tl.store(p_places + o_to, tl.where(m_wanted, b_place, -1), mask=m_to)
    tl.store(p_mask + o_to, m_wanted.to(tl.uint8), mask=m_to)
    if p_index is not None:
        b_held = tl.zeros([BLOCK], tl.int32)
        for start in range(0, hidden, BLOCK_H):
            o_h = start + tl.arange(0, BLOCK_H)
            o_token = slot * stride_slot + o_at * stride_token
            p_at = p_index + o_token[:, None] + o_h[None, :] * stride_feature
            m_some = m_at[:, None] & (o_h < hidden)[None, :]
            b_x = tl.load(p_at, mask=m_some, other=0.0).to(tl.float32)  # [BLOCK, H]
            b_held = tl.maximum(b_held, tl.max((b_x != 0).to(tl.int32), 1))
        m_wanted = m_wanted & (b_held > 0)
    tl.store(p_read + o_to, m_wanted.to(tl.uint8), mask=m_to)


@triton.jit
def without_unread_kernel(
    p_positions, p_table, p_read, p_out,
    entries, size,
    BLOCK: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One slot of the store a program, with all entries of the table that name it."""
    slot = tl.program_id(0).to(tl.int64)
    o_at = tl.arange(0, BLOCK)
    b_used = tl.zeros([BLOCK], tl.int32)
    named = tl.full([], 0, tl.int32)
    for start in range(0, entries, BLOCK_E):
        o_e = start + tl.arange(0, BLOCK_E).to(tl.int64)
        m_same = tl.load(p_table + o_e, mask=o_e < entries, other=-1) == slot
        named = tl.maximum(named, tl.max(m_same.to(tl.int32), 0))
        p_from = p_read + o_e[:, None] * size + o_at[None, :]
        m_from = (m_same & (o_e < entries))[:, None] & (o_at < size)[None, :]
        b_read = tl.load(p_from, mask=m_from, other=0)  # [E, BLOCK]
        b_used = tl.maximum(b_used, tl.max((b_read != 0).to(tl.int32), 0))
    o_slot = slot * size + o_at
    b_place = tl.load(p_positions + o_slot, mask=o_at < size, other=-1)  # [BLOCK]
    b_place = tl.where((named > 0) & (b_used == 0), -1, b_place)
    tl.store(p_out + o_slot, b_place, mask=o_at < size)


def recalled(*given: Any) -> None:
    """Launches `recalled_kernel`, one program a block of the table."""
    table, within, positions, token_ids, index = given[:5]
    used, sure, out = Used(*given[5:8]), Sure(*given[8:12]), Recalled(*given[12:])
    size = positions.shape[1]
    launch(
        recalled_kernel,
        (table.numel(),),
        device=table.device,
        warps=2,
        p_table=table.contiguous(),
        p_within=None if within is None else within.contiguous(),
        p_positions=positions,
        p_token_ids=token_ids,
        p_index=index,
        p_count=used.access_count,
        p_last=used.last_access,
        p_certainty=sure.certainty.contiguous(),
        p_mask=out.mask.view(torch.uint8),
        p_read=out.read.view(torch.uint8),
        p_ids=out.token_ids,
        p_places=out.positions,
        p_bias=out.bias,
        clock=used.clock,
        low=sure.low,
        width=sure.high - sure.low,
        most=sure.most,
        entries=table.shape[1],
        passages=0 if within is None else within.shape[1],
        size=size,
        hidden=0 if index is None else index.shape[2],
        **strides("stride_", ("slot", "token", "feature"), index),
        BLOCK=next_power(size),
        BLOCK_H=FEATURES,
    )


def without_unread(
    positions: torch.Tensor, table: torch.Tensor, read: torch.Tensor, out: torch.Tensor
) -> None:
    """Launches `without_unread_kernel`, one program a slot of the store."""
    size = out.shape[1]
    launch(
        without_unread_kernel,
        (len(out),),
        device=table.device,
        warps=4,
        p_positions=positions.contiguous(),
        p_table=table.contiguous(),
        p_read=read.contiguous().view(torch.uint8),
        p_out=out,
        entries=table.numel(),
        size=size,
        BLOCK=next_power(size),
        BLOCK_E=ENTRIES,
    )
