"""Tokens of chosen blocks, as Triton kernels; `cmr.kernels.search.recalled` specifies them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import launch, next_power

FEATURES = 64
"""Features of an index vector that a program looks at at once."""
ENTRIES = 32
"""Entries of a table that a program looks at at once."""


@triton.jit
def recalled_kernel(
    p_table, p_within, p_positions, p_token_ids, p_index, p_mask, p_read, p_ids, p_places,
    entries, passages, size, hidden, stride_slot, stride_token, stride_feature,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One block of a table a program."""
    i_at = tl.program_id(0).to(tl.int64)
    i_batch = i_at // entries
    slot = tl.load(p_table + i_at)
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
    p_table, p_read, p_out,
    entries, size,
    BLOCK: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One block of a table a program; the first of those with a slot writes."""
    i_at = tl.program_id(0).to(tl.int64)
    slot = tl.load(p_table + i_at)
    o_at = tl.arange(0, BLOCK)
    b_used = tl.zeros([BLOCK], tl.int32)
    before = tl.full([], 0, tl.int32)
    for start in range(0, entries, BLOCK_E):
        o_e = start + tl.arange(0, BLOCK_E).to(tl.int64)
        m_same = tl.load(p_table + o_e, mask=o_e < entries, other=-1) == slot
        before = tl.maximum(before, tl.max((m_same & (o_e < i_at)).to(tl.int32), 0))
        p_from = p_read + o_e[:, None] * size + o_at[None, :]
        m_from = (m_same & (o_e < entries))[:, None] & (o_at < size)[None, :]
        b_read = tl.load(p_from, mask=m_from, other=0)  # [E, BLOCK]
        b_used = tl.maximum(b_used, tl.max((b_read != 0).to(tl.int32), 0))
    # No two programs write to one place, though several rows may name a slot.
    m_left = (b_used == 0) & (o_at < tl.where((slot >= 0) & (before == 0), size, 0))
    tl.store(p_out + slot * size + o_at, b_used.to(tl.int64) - 1, mask=m_left)


def recalled(
    table: torch.Tensor,
    within: torch.Tensor | None,
    positions: torch.Tensor,
    token_ids: torch.Tensor,
    index: torch.Tensor | None,
    mask: torch.Tensor,
    read: torch.Tensor,
    ids: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Launches `recalled_kernel`, one program a block of the table."""
    size = positions.shape[1]
    strides = (0, 0, 0) if index is None else index.stride()
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
        p_mask=mask.view(torch.uint8),
        p_read=read.view(torch.uint8),
        p_ids=ids,
        p_places=places,
        entries=table.shape[1],
        passages=0 if within is None else within.shape[1],
        size=size,
        hidden=0 if index is None else index.shape[2],
        stride_slot=strides[0],
        stride_token=strides[1],
        stride_feature=strides[2],
        BLOCK=next_power(size),
        BLOCK_H=FEATURES,
    )


def without_unread(table: torch.Tensor, read: torch.Tensor, out: torch.Tensor) -> None:
    """Launches `without_unread_kernel`, one program a block of the table."""
    size = out.shape[1]
    launch(
        without_unread_kernel,
        (table.numel(),),
        device=table.device,
        warps=2,
        p_table=table.contiguous(),
        p_read=read.contiguous().view(torch.uint8),
        p_out=out,
        entries=table.numel(),
        size=size,
        BLOCK=next_power(size),
        BLOCK_E=ENTRIES,
    )
