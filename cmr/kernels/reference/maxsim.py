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
CODES = (torch.int8, torch.float8_e4m3fn)
"""Dtypes of an index in 8 bits, with a scale of its own for every token."""


def block_maxima(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    session: torch.Tensor | None = None,
    sessions: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `cmr.kernels.maxsim.block_maxima`: the same arguments, result, errors.

    One matrix product in the index's dtype (float32 for codes), accumulated in float32, over chunks
    of blocks that keep the temporaries near 64 MB.
    """
    check_block_maxima(query, index, token_mask, scale, session, sessions, slots)
    if slots is not None:
        if session is not None and sessions is not None and len(index):
            theirs = session[slots.clamp(min=0)] != sessions[:, None]
            slots = slots.masked_fill(theirs, -1)
        return _of_slots(query, index, token_mask, scale, slots)
    batch, tokens, width = query.shape
    blocks, block, _ = index.shape
    maxima = torch.full((batch * tokens, blocks), NEG_INF, dtype=torch.float32, device=query.device)
    if maxima.numel() and block:
        codes = index.dtype in CODES
        rows = query.reshape(batch * tokens, width)
        rows = rows.float() if codes else rows
        per_block = block * max(batch * tokens, codes * width) * rows.element_size()
        chunk = max(1, CHUNK_BYTES // per_block)
        for start in range(0, blocks, chunk):
            part = slice(start, start + chunk)
            piece = index[part].float() if codes else index[part]
            similar = rows @ piece.reshape(-1, width).t()
            similar = similar.view(batch * tokens, -1, block)
            if scale is not None:
                similar *= scale[part]
            if token_mask is not None:
                similar = similar.masked_fill_(~stored(token_mask[part]), NEG_INF)
            maxima[:, part] = similar.amax(-1)
    maxima = maxima.view(batch, tokens, blocks)
    if session is not None and sessions is not None:
        maxima = maxima.masked_fill_((session != sessions[:, None])[:, None], NEG_INF)
    return maxima


def check_block_maxima(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None,
    scale: torch.Tensor | None,
    session: torch.Tensor | None,
    sessions: torch.Tensor | None,
    slots: torch.Tensor | None,
) -> None:
    """Raises what `cmr.kernels.maxsim.block_maxima` says."""
    expect_shape("query", query, ("B", None), ("Q", None), ("H", None))
    batch, _, width = query.shape
    expect_shape("index", index, ("N", None), ("block", None), ("H", width))
    blocks, block, _ = index.shape
    if index.dtype in CODES:
        if query.dtype not in (torch.float16, torch.float32):
            raise TypeError(f"query: dtype float16 or float32 expected, got {query.dtype}")
        if scale is None:
            raise ValueError(f"scale: [N={blocks}, block={block}] expected for codes, got None")
    else:
        expect_float("index", index)
        expect_same_dtype("query", query, index.dtype)
    if scale is not None:
        expect_shape("scale", scale, ("N", blocks), ("block", block))
        expect_same_dtype("scale", scale, torch.float32)
    if token_mask is not None:
        expect_shape("token_mask", token_mask, ("N", blocks), ("block", block))
        if token_mask.dtype != torch.int64:
            expect_bool("token_mask", token_mask)
    if (session is None) != (sessions is None):
        raise ValueError("session and sessions: both expected or none, got one")
    if session is not None and sessions is not None:
        expect_shape("session", session, ("N", blocks))
        expect_shape("sessions", sessions, ("B", batch))
        expect_same_dtype("session", session, torch.int64)
        expect_same_dtype("sessions", sessions, torch.int64)
    if slots is not None:
        expect_shape("slots", slots, ("B", batch), ("C", None))
        expect_same_dtype("slots", slots, torch.int64)


def stored(token_mask: torch.Tensor) -> torch.Tensor:
    """Bool: where a token is stored, of a bool mask or of positions."""
    return token_mask if token_mask.dtype == torch.bool else token_mask >= 0


def _of_slots(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None,
    scale: torch.Tensor | None,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Maxima [B, Q, C] of the blocks in `slots` [B, C] only."""
    batch, tokens, _ = query.shape
    maxima = query.new_full((batch, tokens, slots.shape[1]), NEG_INF, dtype=torch.float32)
    if not len(index):
        return maxima
    for row in range(batch):
        at = slots[row].clamp(min=0)
        parts = (None if x is None else x[at] for x in (token_mask, scale))
        found = block_maxima(query[row : row + 1], index[at], *parts)[0]
        maxima[row] = found.masked_fill(slots[row] < 0, NEG_INF)
    return maxima


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
    usable, mean, deviation = spread(maxima, visible)
    z = torch.where(deviation > 0, (maxima - mean) / deviation, 0.0).clamp(-clamp, clamp)
    return torch.where(usable, z, -clamp)


def spread(
    maxima: torch.Tensor, visible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which maxima count, and their mean and population deviation.

    Args:
        maxima: [B, Q, N] float32.
        visible: [B, N] bool.

    Returns:
        [B, Q, N] bool, visible and finite; and two [B, Q, 1] float32 over those, the deviation 0
        where it is no more than float32 rounding.
    """
    usable = visible[:, None] & maxima.isfinite()
    count = usable.sum(-1, keepdim=True).clamp(min=1)
    kept = torch.where(usable, maxima, 0.0)
    mean = kept.sum(-1, keepdim=True) / count
    centred = torch.where(usable, maxima - mean, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    floor = 1e-6 * kept.abs().amax(-1, keepdim=True) if maxima.shape[-1] else deviation
    return usable, mean, torch.where(deviation > floor, deviation, 0.0)


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
