"""Cosine top-k as Triton kernels; `cmr.kernels.cosine_topk` is the specification."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, in_rows, launch, next_power, target
from cmr.kernels.gpu._topk import (
    LOWEST,
    chosen,
    decode,
    empty_run,
    insert,
    inverse_norms,
    pack,
    rank,
    unpack_score,
    unpack_slot,
)

ROUND = 64
CANDIDATES = 1024
"""Candidates that a merging program takes at once."""


@triton.jit
def cosine_partial_kernel(
    p_query, p_entries, p_factor, p_scale, p_visible, p_scores, p_slots, p_partial,
    rows, entries, splits, per_split, k, found, threshold,
    stride_query, stride_entry, stride_visible,
    HIDDEN: tl.constexpr, HAS_THRESHOLD: tl.constexpr, FP8: tl.constexpr, CODES: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The best `K` of a part of the entries for up to `BLOCK_Q` queries.

    With `found` above 0, only what comes after the last one found so far.
    """
    i_split = tl.program_id(0).to(tl.int64)
    o_q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q).to(tl.int64)
    m_q = o_q < rows
    p_row = p_query + o_q * stride_query
    dtype: tl.constexpr = tl.float16 if CODES else p_entries.dtype.element_ty
    # Every program scales its queries itself: they are few, and a launch for it would cost more.
    b_inverse = inverse_norms(p_row, m_q, HIDDEN, BLOCK_Q, BLOCK_H)
    # A later pass starts behind the last one found. Packed values tell ties apart by the slot, so
    # that "behind" is a single comparison and nothing is found twice or missed.
    if found > 0:
        b_score = tl.load(p_scores + o_q * k + found - 1, mask=m_q, other=0.0)
        b_slot = tl.load(p_slots + o_q * k + found - 1, mask=m_q, other=0)
        b_bound = tl.where(b_slot < 0, LOWEST, pack(b_score, b_slot))
    else:
        b_bound = tl.full([BLOCK_Q], 0x7FFFFFFFFFFFFFFF, tl.int64)
    b_run = empty_run(BLOCK_Q, K)
    end = tl.minimum((i_split + 1) * per_split, entries)
    for start in range(i_split * per_split, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < end
        b_similar = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        for start_h in range(0, HIDDEN, BLOCK_H):
            o_h = start_h + tl.arange(0, BLOCK_H)
            m_a = m_q[:, None]
            m_b = m_n[None, :]
            if HIDDEN % BLOCK_H:
                m_a = m_a & (o_h < HIDDEN)[None, :]
                m_b = m_b & (o_h < HIDDEN)[:, None]
            b_q = tl.load(p_row[:, None] + o_h[None, :], mask=m_a, other=0.0)  # [Q, H]
            b_q = (b_q.to(tl.float32) * b_inverse[:, None]).to(dtype)
            p_k = p_entries + o_n[None, :] * stride_entry + o_h[:, None]
            b_k = tl.load(p_k, mask=m_b, other=0)  # [H, N]
            b_k = decode(b_k, FP8, dtype)
            b_similar = tl.dot(b_q, b_k, b_similar, input_precision="ieee")
        if p_scale is not None:
            b_similar = b_similar * tl.load(p_scale + o_n, mask=m_n, other=0.0)[None, :]
        if p_factor is not None:
            b_factor = tl.load(p_factor + o_n, mask=m_n, other=0.0).to(tl.float32)
            b_similar = b_similar * b_factor[None, :]
        m_may = m_q[:, None] & m_n[None, :]
        if p_visible is not None:
            p_may = p_visible + o_q[:, None] * stride_visible + o_n[None, :]
            m_may = m_may & (tl.load(p_may, mask=m_may, other=0) != 0)
        if HAS_THRESHOLD:
            m_may = m_may & (b_similar >= threshold)
        # Packed after the scale: the order of codes is not that of the cosines.
        b_new = pack(b_similar, o_n[None, :])
        b_new = tl.where(m_may & (b_new < b_bound[:, None]), b_new, LOWEST)
        b_run = insert(b_run, b_new)
    p_to = p_partial + (o_q[:, None] * splits + i_split) * K + tl.arange(0, K)[None, :]
    tl.store(p_to, b_run, mask=m_q[:, None])  # [Q, K]


@triton.jit
def cosine_merge_kernel(
    p_partial, p_scores, p_slots, candidates, k, found, K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The best of all parts of one query, in falling order, after the first `found`."""
    i_row = tl.program_id(0).to(tl.int64)
    b_run = empty_run(1, K)
    for start in range(0, candidates, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        p_from = p_partial + i_row * candidates + o_c
        b_new = tl.load(p_from, mask=o_c < candidates, other=LOWEST)
        b_run = insert(b_run, tl.where(chosen(b_new), b_new, LOWEST)[None, :])
    store_run(p_scores + i_row * k + found, p_slots + i_row * k + found, b_run, k - found, K)


@triton.jit
def store_run(p_scores, p_slots, b_run, k, K: tl.constexpr):
    """A running top-k [1, K] in falling order."""
    b_run = tl.reshape(b_run, [K])
    o_k = rank(b_run, K)
    tl.store(p_scores + o_k, unpack_score(b_run), mask=o_k < k)
    tl.store(p_slots + o_k, unpack_slot(b_run), mask=o_k < k)


def cosine_topk(
    query: torch.Tensor,
    entries: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    visible: torch.Tensor | None,
    threshold: float | None,
    scale: torch.Tensor | None,
    partial: torch.Tensor,
    scores: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Launches a partial top-k over parts of the entries and a merge, for every 64 wanted."""
    batch, hidden = query.shape
    count, k = entries.shape[0], scores.shape[1]
    _, splits, width = partial.shape
    query, entries = in_rows(query), in_rows(entries)
    seen = None if visible is None else in_rows(visible).view(torch.uint8)
    fp8 = entries.dtype == torch.float8_e4m3fn
    wide = entries.dtype == torch.float32
    amd = target(query.device).backend == "hip"
    most = 16 if amd else 32 if wide or width > 32 else 64
    rows = min(most, max(16, next_power(batch)))
    tile = 64 if wide or amd else 128
    # A running top-k lives in registers: more than 64 would spill, so the store is read again.
    for found in range(0, k, ROUND):
        launch(
            cosine_partial_kernel,
            (splits, cdiv(batch, rows)),
            device=query.device,
            warps=8 if rows > 16 else 4,
            stages=1 if amd else 3,
            p_query=query,
            p_entries=entries.view(torch.uint8) if fp8 else entries,
            p_factor=None if inverse_norm is None else inverse_norm.contiguous(),
            p_scale=None if scale is None else scale.contiguous(),
            p_visible=seen,
            p_scores=scores,
            p_slots=slots,
            p_partial=partial,
            rows=batch,
            entries=count,
            splits=splits,
            per_split=cdiv(cdiv(count, splits), tile) * tile,
            k=k,
            found=found,
            threshold=0.0 if threshold is None else threshold,
            stride_query=query.stride(0),
            stride_entry=entries.stride(0),
            stride_visible=0 if seen is None else seen.stride(0),
            HIDDEN=hidden,
            HAS_THRESHOLD=threshold is not None,
            FP8=fp8,
            CODES=scale is not None,
            BLOCK_Q=rows,
            BLOCK_N=tile,
            BLOCK_H=32 if amd else 16 if wide else 64,
            K=width,
        )
        launch(
            cosine_merge_kernel,
            (batch,),
            device=query.device,
            warps=4,
            p_partial=partial,
            p_scores=scores,
            p_slots=slots,
            candidates=splits * width,
            k=k,
            found=found,
            K=width,
            BLOCK_C=min(CANDIDATES, next_power(splits * width)),
        )
