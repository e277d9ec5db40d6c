"""Finding blocks by late interaction: each query token's best token of a block, then the mean."""

from __future__ import annotations

import torch

from cmr.kernels.reference._shapes import (
    expect_bool,
    expect_float,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference._topk import topk_lowest_slot
from cmr.kernels.reference.attention import NEG_INF

CHUNK_BYTES = 64 << 20
"""Most bytes of token similarities at once."""


def block_maxima(
    query: torch.Tensor, index: torch.Tensor, token_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Cosine of each query token with the best token of each block.

    Args:
        query: [B, Q, H], norm 1 per token, in the index's dtype.
        index: [N, block, H], norm 1 per token; N may be 0.
        token_mask: [N, block] bool, True = a stored token; None: all.

    Returns:
        [B, Q, N] float32; -inf for a block without a stored token. A similarity that is NaN makes
        its block NaN, unless its token is masked.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    One matrix product in the index's dtype, accumulated in float32, over chunks of blocks that
    keep the temporaries near 64 MB.

    Source: Khattab and Zaharia, ColBERT (2020), section 3.3, before the sum over query tokens.

    Equivalent PyTorch: `torch.einsum("bqh,nth->bqnt", query, index).amax(-1)`.
    """
    expect_shape("query", query, ("B", None), ("Q", None), ("H", None))
    batch, tokens, width = query.shape
    expect_shape("index", index, ("N", None), ("block", None), ("H", width))
    blocks, block, _ = index.shape
    expect_float("index", index)
    expect_same_dtype("query", query, index.dtype)
    if token_mask is not None:
        expect_shape("token_mask", token_mask, ("N", blocks), ("block", block))
        expect_bool("token_mask", token_mask)
    maxima = torch.full((batch * tokens, blocks), NEG_INF, dtype=torch.float32, device=query.device)
    if not maxima.numel() or not block:
        return maxima.view(batch, tokens, blocks)
    rows = query.reshape(batch * tokens, width)
    per_block = batch * tokens * block * query.element_size()
    chunk = max(1, CHUNK_BYTES // per_block)
    for start in range(0, blocks, chunk):
        part = index[start : start + chunk]
        similar = rows @ part.reshape(-1, width).t()
        similar = similar.view(batch * tokens, part.shape[0], block)
        if token_mask is not None:
            similar = similar.masked_fill_(~token_mask[start : start + chunk], NEG_INF)
        maxima[:, start : start + chunk] = similar.amax(-1)
    return maxima.view(batch, tokens, blocks)


def standardise(maxima: torch.Tensor, visible: torch.Tensor, clamp: float = 8.0) -> torch.Tensor:
    """Each query token's maxima as deviations from their mean over the visible blocks.

    A token that matches everything alike then says little, one that singles out a block says much.

    Args:
        maxima: [B, Q, N] float32.
        visible: [B, N] bool: the blocks that a row may see.
        clamp: above 0; deviations are limited to [-clamp, clamp].

    Returns:
        z [B, Q, N] float32 in [-clamp, clamp]. Mean and population deviation are over a row's
        visible blocks with finite maxima; every other block is -clamp. With fewer than two such
        blocks, or all of them equal, those are 0.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or clamp is not above 0.

    Equivalent PyTorch: `((m - m.mean(-1)) / m.std(-1, correction=0)).clamp(-clamp, clamp)`.
    """
    expect_shape("maxima", maxima, ("B", None), ("Q", None), ("N", None))
    expect_shape("visible", visible, ("B", maxima.shape[0]), ("N", maxima.shape[2]))
    expect_bool("visible", visible)
    if not clamp > 0:
        raise ValueError(f"clamp: a number above 0 expected, got {clamp}")
    usable = visible[:, None] & maxima.isfinite()
    count = usable.sum(-1, keepdim=True).clamp(min=1)
    kept = torch.where(usable, maxima, 0.0)
    centred = torch.where(usable, maxima - kept.sum(-1, keepdim=True) / count, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    # A spread at the level of float32 rounding is no spread.
    floor = 1e-6 * kept.abs().amax(-1, keepdim=True) if maxima.shape[-1] else deviation
    z = torch.where(deviation > floor, centred / deviation, 0.0).clamp(-clamp, clamp)
    return torch.where(usable, z, -clamp)


def passages(maxima: torch.Tensor, successor: torch.Tensor) -> torch.Tensor:
    """Maxima of passages of two consecutive blocks: a fact that an edge cuts is found whole.

    Args:
        maxima: [B, Q, N] float32.
        successor: [N] int64: the slot of the next block of the same session, or -1.

    Returns:
        [B, Q, N] float32: the larger of each block's value and its successor's.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Equivalent PyTorch: `torch.maximum(maxima, maxima[..., successor])` where there is one.
    """
    expect_shape("maxima", maxima, ("B", None), ("Q", None), ("N", None))
    expect_shape("successor", successor, ("N", maxima.shape[2]))
    if successor.dtype != torch.int64:
        raise TypeError(f"successor: dtype torch.int64 expected, got {successor.dtype}")
    following = maxima.index_select(-1, successor.clamp(min=0))
    return torch.maximum(maxima, torch.where(successor >= 0, following, NEG_INF))


def maxsim_topk(
    z: torch.Tensor, query_weights: torch.Tensor | None, visible: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k blocks with the highest weighted mean over the query's tokens.

    Args:
        z: [B, Q, N] float32, as from `standardise` (or plain maxima).
        query_weights: [B, Q] float of at least 0; None: equal. A row whose weights are all 0 has
            no query and finds nothing.
        visible: [B, N] bool: the blocks that a row may see.
        k: at least 1; may exceed N.

    Returns:
        scores [B, k] float32 in falling order and slots [B, k] int64; -inf and -1 where a row sees
        fewer blocks. Ties: the lowest slot wins. NaN never wins.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or k is below 1.

    Equivalent PyTorch: `torch.topk((w[..., None] * z).sum(1) / w.sum(1), k)`, ties aside.
    """
    expect_shape("z", z, ("B", None), ("Q", None), ("N", None))
    batch, tokens, blocks = z.shape
    expect_shape("visible", visible, ("B", batch), ("N", blocks))
    expect_bool("visible", visible)
    if query_weights is None:
        query_weights = torch.ones(batch, tokens, device=z.device)
    expect_shape("query_weights", query_weights, ("B", batch), ("Q", tokens))
    shares = query_weights.float()
    total = shares.sum(1, keepdim=True)
    scores = torch.bmm((shares / total).unsqueeze(1), z).squeeze(1)
    return topk_lowest_slot(scores.masked_fill(~(visible & (total > 0)), NEG_INF), k)
