"""The k stored entries that are nearest to a query by cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.kernels.reference._shapes import expect_bool, expect_float, expect_shape
from cmr.kernels.reference._topk import topk_lowest_slot
from cmr.kernels.reference.attention import NEG_INF

CHUNK_BYTES = 64 << 20
"""Most bytes of similarities at once."""


def cosine_topk(
    query: torch.Tensor,
    entries: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    visible: torch.Tensor | None,
    k: int,
    threshold: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k visible entries with the highest cosine to each query.

    Args:
        query: [B, H], any float dtype and norm; scaled to norm 1 in float32, then cast to the
            entries' dtype. A query that is all 0 has cosine 0 with everything.
        entries: [N, H], any float dtype; N may be 0.
        inverse_norm: [N] float32, 1 / norm of each entry; None: the entries have norm 1.
        visible: [B, N] bool: the entries that a row may see; None: all.
        k: at least 1; may exceed N.
        threshold: least cosine that is returned; None: any.

    Returns:
        scores [B, k] float32 in falling order and slots [B, k] int64; -inf and -1 where fewer
        qualify. Ties: the lowest slot wins. NaN never wins.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or k is below 1.

    Products accumulate in float32, over chunks of entries that keep temporaries near 64 MB.

    Equivalent PyTorch:
        `torch.topk(F.normalize(query) @ F.normalize(entries).mT, k)`, ties aside.
    """
    expect_shape("query", query, ("B", None), ("H", None))
    batch, width = query.shape
    expect_shape("entries", entries, ("N", None), ("H", width))
    count = entries.shape[0]
    expect_float("query", query)
    expect_float("entries", entries)
    if inverse_norm is not None:
        expect_shape("inverse_norm", inverse_norm, ("N", count))
    if visible is not None:
        expect_shape("visible", visible, ("B", batch), ("N", count))
        expect_bool("visible", visible)
    unit = F.normalize(query.float(), dim=-1).to(entries.dtype)
    scores = torch.full((batch, count), NEG_INF, dtype=torch.float32, device=query.device)
    chunk = max(1, CHUNK_BYTES // max(1, batch * entries.element_size()))
    for start in range(0, count, chunk):
        scores[:, start : start + chunk] = unit @ entries[start : start + chunk].t()
    if inverse_norm is not None:
        scores *= inverse_norm.float()
    if visible is not None:
        scores = scores.masked_fill(~visible, NEG_INF)
    if threshold is not None:
        scores = scores.masked_fill(scores < threshold, NEG_INF)
    return topk_lowest_slot(scores, k)
