"""The k stored entries that are nearest to a query by cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.kernels.reference._shapes import (
    expect_bool,
    expect_float,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference._topk import topk_lowest_slot, topk_of
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.maxsim import CODES

CHUNK_BYTES = 64 << 20
"""Most bytes of similarities, or of codes made floats, at once."""


def cosine_topk(
    query: torch.Tensor,
    entries: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    visible: torch.Tensor | None,
    k: int,
    threshold: float | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `cmr.kernels.cosine_topk.cosine_topk`: the same arguments and result.

    Products accumulate in float32, over chunks of entries that keep temporaries near 64 MB.
    """
    check_cosine_topk(query, entries, inverse_norm, visible, k, scale)
    batch, count = query.shape[0], entries.shape[0]
    unit = unit_query(query, entries.dtype)
    codes = entries.dtype in CODES
    unit = unit.float() if codes else unit
    factor = None if inverse_norm is None else inverse_norm.float()
    if scale is not None:
        factor = scale if factor is None else scale * factor
    scores = torch.empty((batch, count), dtype=torch.float32, device=query.device)
    per_entry = max(batch, codes * entries.shape[1]) * unit.element_size()
    chunk = max(1, CHUNK_BYTES // max(1, per_entry))
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        piece = entries[part].float() if codes else entries[part]
        if unit.dtype == torch.float32 and batch == 1:
            torch.mv(piece, unit[0], out=scores[0, part])
        elif unit.dtype == torch.float32:
            torch.mm(unit, piece.t(), out=scores[:, part])
        else:
            scores[:, part] = unit @ piece.t()
        if factor is not None:
            scores[:, part] *= factor[part]
    if visible is not None:
        scores.masked_fill_(~visible, NEG_INF)
    if threshold is not None:
        scores.masked_fill_(scores < threshold, NEG_INF)
    return topk_lowest_slot(scores, k, many_ties=unit.dtype != torch.float32)


def unit_query(query: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Queries scaled to norm 1 in float32, in the dtype that they are multiplied in."""
    return F.normalize(query.float(), dim=-1).to(torch.float16 if dtype in CODES else dtype)


def check_cosine_topk(
    query: torch.Tensor,
    entries: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    visible: torch.Tensor | None,
    k: int,
    scale: torch.Tensor | None,
) -> None:
    """Raises what `cmr.kernels.cosine_topk.cosine_topk` says."""
    expect_shape("query", query, ("B", None), ("H", None))
    batch, width = query.shape
    expect_shape("entries", entries, ("N", None), ("H", width))
    count = entries.shape[0]
    expect_float("query", query)
    if entries.dtype in CODES:
        if scale is None:
            raise ValueError(f"scale: [N={count}] expected for codes, got None")
    else:
        expect_float("entries", entries)
    if scale is not None:
        expect_shape("scale", scale, ("N", count))
        expect_same_dtype("scale", scale, torch.float32)
    if inverse_norm is not None:
        expect_shape("inverse_norm", inverse_norm, ("N", count))
    if visible is not None:
        expect_shape("visible", visible, ("B", batch), ("N", count))
        expect_bool("visible", visible)
    if k < 1:
        raise ValueError(f"k: an integer of at least 1 expected, got {k}")


def cosine_rerank(
    query: torch.Tensor,
    entries: torch.Tensor,
    candidates: torch.Tensor,
    k: int,
    inverse_norm: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `cmr.kernels.cosine_topk.cosine_rerank`: the same arguments, result."""
    check_cosine_rerank(query, entries, candidates, k, inverse_norm)
    unit = unit_query(query, entries.dtype).float()
    if not len(entries):
        candidates = candidates.new_full(candidates.shape, -1)
        scores = unit.new_full(candidates.shape, NEG_INF)
        return topk_of(scores, candidates, k)
    at = candidates.clamp(min=0)
    scores = torch.bmm(entries[at].float(), unit.unsqueeze(-1)).squeeze(-1)
    if inverse_norm is not None:
        scores = scores * inverse_norm.float()[at]
    return topk_of(scores.masked_fill(candidates < 0, NEG_INF), at, k)


def check_cosine_rerank(
    query: torch.Tensor,
    entries: torch.Tensor,
    candidates: torch.Tensor,
    k: int,
    inverse_norm: torch.Tensor | None,
) -> None:
    """Raises what `cmr.kernels.cosine_topk.cosine_rerank` says."""
    expect_float("entries", entries)
    check_cosine_topk(query, entries, inverse_norm, None, k, None)
    expect_shape("candidates", candidates, ("B", query.shape[0]), ("C", None))
    expect_same_dtype("candidates", candidates, torch.int64)
