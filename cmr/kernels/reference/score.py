"""Relevance of tokens and blocks: how much a token is worth keeping, per token, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmr.kernels.reference._shapes import (
    expect_bool,
    expect_float,
    expect_heads,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference.attention import NEG_INF, group_logits

CHUNK_BYTES = 16 << 20
"""Most bytes of a temporary in float32 at once."""
CACHED_BYTES = 512 << 10
"""Bytes of a temporary that stay in a core's cache while they are used several times."""


def variance(states: torch.Tensor) -> torch.Tensor:
    """Population variance of each token's hidden state over its features.

    Args:
        states: [B, S, H], any float dtype.

    Returns:
        [B, S] float32.

    Raises:
        TypeError, ValueError: not a float tensor of that shape.

    Equivalent PyTorch: `states.float().var(-1, correction=0)`.
    """
    _expect_states(states)
    return _variance(states.float())


def norm(states: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each token's hidden state.

    Args:
        states: [B, S, H], any float dtype.

    Returns:
        [B, S] float32.

    Raises:
        TypeError, ValueError: not a float tensor of that shape.

    Equivalent PyTorch: `states.float().norm(dim=-1)`.
    """
    _expect_states(states)
    return torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)


def inverse_norm(states: torch.Tensor) -> torch.Tensor:
    """1 / Euclidean norm of each state; 0 for a state that is all 0, so that its cosines are 0.

    Args:
        states: [..., H], any float dtype.

    Returns:
        [...] float32.

    Raises:
        TypeError: not a float tensor.

    Equivalent PyTorch: `1 / states.float().norm(dim=-1)`.
    """
    expect_float("states", states)
    # A norm is never taken in a narrower dtype than that of the states: PyTorch refuses to.
    wide = torch.promote_types(states.dtype, torch.float32)
    norms = torch.linalg.vector_norm(states, dim=-1, dtype=wide).float()
    return torch.where(norms == 0, 0.0, 1.0 / norms)


def state_scores(
    states: torch.Tensor, block_size: int, lengths: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The specification of `cmr.kernels.state_scores`: the same arguments, result, errors."""
    _expect_states(states)
    batch, tokens, width = states.shape
    spread = states.new_empty(batch, tokens, dtype=torch.float32)
    norms = torch.empty_like(spread)
    chunk = max(1, CACHED_BYTES // max(1, 4 * batch * width))
    for start in range(0, tokens, chunk):  # read from memory once: the rest comes from the cache
        part = slice(start, start + chunk)
        wide = states[:, part].float()
        spread[:, part] = _variance(wide)
        norms[:, part] = torch.linalg.vector_norm(wide, dim=-1)
    pooled = pool_blocks(spread, block_size, lengths)
    return spread, norms, torch.where(norms == 0, 0.0, 1.0 / norms), pooled


def attention_received(
    query: torch.Tensor,
    key: torch.Tensor,
    scale: float | None = None,
    is_causal: bool = True,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `cmr.kernels.attention_received`: the same arguments, result, errors."""
    check_attention_received(query, key, is_causal, key_mask)
    batch, heads, steps, width = query.shape
    length = key.shape[2]
    received = torch.zeros(batch, length, dtype=torch.float32, device=query.device)
    seen = torch.zeros(batch, length, dtype=torch.float32, device=query.device)
    columns = torch.arange(length, device=query.device)
    chunk = max(1, CHUNK_BYTES // max(1, 4 * batch * heads * length))
    for start in range(0, steps, chunk):
        part = query[:, :, start : start + chunk]
        rows = torch.arange(start, start + part.shape[2], device=query.device)
        visible = torch.ones(1, rows.numel(), length, dtype=torch.bool, device=query.device)
        if is_causal:
            visible = (columns <= rows[:, None] + (length - steps))[None]
        if key_mask is not None:
            visible = visible & key_mask[:, None]
            if steps == length:
                visible = visible & key_mask[:, start : start + chunk, None]
        logits = group_logits(part, key, width**-0.5 if scale is None else scale, None)
        logits = logits.masked_fill(~visible[:, None, None], NEG_INF)
        shares = (
            torch.softmax(logits, -1).nan_to_num(0.0)
            if key_mask is not None
            else (torch.softmax(logits, -1))
        )
        received += shares.sum((1, 2, 3)) / heads
        seen += visible.sum(1)
    return received / seen.clamp(min=1.0)


def check_attention_received(
    query: torch.Tensor, key: torch.Tensor, is_causal: bool, key_mask: torch.Tensor | None
) -> None:
    """Raises what `cmr.kernels.attention_received` says."""
    expect_shape("query", query, ("B", None), ("H", None), ("S", None), ("D", None))
    batch, _, steps, width = query.shape
    expect_shape("key", key, ("B", batch), ("G", None), ("L", None), ("D", width))
    expect_float("query", query)
    expect_same_dtype("key", key, query.dtype)
    expect_heads(query, key)
    length = key.shape[2]
    if is_causal and steps > length:
        raise ValueError(f"query: at most L={length} tokens expected, got {steps}")
    if key_mask is not None:
        expect_shape("key_mask", key_mask, ("B", batch), ("L", length))
        expect_bool("key_mask", key_mask)


def surprise(
    logits: torch.Tensor, token_ids: torch.Tensor, previous: torch.Tensor | None = None
) -> torch.Tensor:
    """The specification of `cmr.kernels.surprise`: the same arguments, result, errors."""
    expect_shape("logits", logits, ("B", None), ("S", None), ("V", None))
    batch, steps, vocabulary = logits.shape
    expect_float("logits", logits)
    expect_shape("token_ids", token_ids, ("B", batch), ("S", steps))
    if token_ids.is_floating_point() or token_ids.dtype == torch.bool:
        raise TypeError(f"token_ids: an integer dtype expected, got {token_ids.dtype}")
    if previous is not None:
        expect_shape("previous", previous, ("B", batch), ("V", vocabulary))
    losses = torch.zeros(batch, steps, dtype=torch.float32, device=logits.device)
    token_ids = token_ids.long()
    chunk = max(1, CHUNK_BYTES // max(1, 4 * batch * vocabulary))
    for start in range(0, steps - 1, chunk):
        stop = min(start + chunk, steps - 1)
        losses[:, start + 1 : stop + 1] = _loss(
            logits[:, start:stop], token_ids[:, start + 1 : stop + 1]
        )
    if previous is not None and steps > 0:
        losses[:, :1] = _loss(previous[:, None], token_ids[:, :1])
    elif steps > 1:
        losses[:, 0] = losses[:, 1:].mean(1)
    return losses


def hybrid(scores: Sequence[torch.Tensor], weights: Sequence[float] | None = None) -> torch.Tensor:
    """Weighted mean of several scores of the same tokens, each calibrated to [0, 1] before.

    Args:
        scores: one or more tensors [B, S] float32.
        weights: one number of at least 0 each, not all 0; None: equal.

    Returns:
        [B, S] float32.

    Raises:
        ValueError: nothing to combine, counts or shapes differ, bad weights.

    Equivalent PyTorch: `sum(w * s for w, s in zip(weights, scores)) / sum(weights)`.
    """
    if not scores:
        raise ValueError("scores: at least one tensor expected, got none")
    weights = [1.0] * len(scores) if weights is None else list(weights)
    expect_weights(weights, len(scores))
    for index, score in enumerate(scores):
        expect_shape(f"scores[{index}]", score, *zip("BS", scores[0].shape, strict=True))
    stacked = torch.stack([score.float() for score in scores])
    shares = torch.tensor(weights, dtype=torch.float32, device=stacked.device) / sum(weights)
    return torch.einsum("nbs,n->bs", stacked, shares)


def calibrate(scores: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Scores as quantiles of a sample of earlier scores, so that 0.5 is the median of any scorer.

    Args:
        scores: [...] float.
        reference: [R] float32, sorted upwards; R may be 0.

    Returns:
        [...] float32 in [0, 1]: the share of the sample below, ties counted half. NaN scores give
        0; an empty sample gives 0.5.

    Raises:
        ValueError: the sample is not one-dimensional.

    Equivalent PyTorch: `((ref < s).sum() + (ref <= s).sum()) / (2 * len(ref))` for each s.
    """
    expect_shape("reference", reference, ("R", None))
    scores = scores.float()
    if reference.numel() == 0:
        return torch.full_like(scores, 0.5)
    known = scores.contiguous()
    below = torch.searchsorted(reference, known)
    up_to = torch.searchsorted(reference, known, right=True)
    return ((below + up_to) / (2 * reference.numel())).masked_fill(scores.isnan(), 0.0)


def hybrid_blocks(
    scores: Sequence[torch.Tensor] | torch.Tensor,
    references: torch.Tensor,
    weights: Sequence[float] | torch.Tensor,
    block_size: int,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `cmr.kernels.hybrid_blocks`: the same arguments, result, errors."""
    if isinstance(weights, torch.Tensor):
        weights = weights.tolist()
    if len(references) != len(scores):
        raise ValueError(f"references: {len(scores)} samples expected, got {len(references)}")
    quantiles = [calibrate(s, sample) for s, sample in zip(scores, references, strict=True)]
    mean = hybrid(quantiles, weights)
    return mean, pool_blocks(mean, block_size, lengths)


def pool_blocks(
    scores: torch.Tensor, block_size: int, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean score of each block of consecutive tokens.

    Args:
        scores: [B, S] float.
        block_size: tokens in a block, at least 1.
        lengths: [B] integers, tokens of each row that count (from the left); None: S each.

    Returns:
        [B, ceil(S / block_size)] float32; a part block is the mean of its tokens, a block without
        any is 0. What lies behind a row's length may be NaN.

    Raises:
        ValueError: shapes do not fit or block_size is below 1.

    Equivalent PyTorch: `scores.view(B, -1, block_size).mean(-1)` for whole blocks.
    """
    expect_shape("scores", scores, ("B", None), ("S", None))
    batch, steps = scores.shape
    if block_size < 1:
        raise ValueError(f"block_size: an integer of at least 1 expected, got {block_size}")
    blocks = -(-steps // block_size)
    counts = torch.arange(blocks * block_size, device=scores.device)
    real = (counts < steps)[None].expand(batch, -1)
    if lengths is not None:
        expect_shape("lengths", lengths, ("B", batch))
        real = real & (counts < lengths[:, None])
    padded = torch.nn.functional.pad(scores.float(), (0, blocks * block_size - steps))
    kept = torch.where(real, padded, 0.0).view(batch, blocks, block_size)
    return kept.sum(-1) / real.view(batch, blocks, block_size).sum(-1).clamp(min=1)


def expect_weights(weights: Sequence[float], count: int) -> None:
    """Raises ValueError unless there are `count` weights of at least 0, not all 0."""
    if len(weights) != count:
        raise ValueError(f"weights: {count} numbers expected, got {len(weights)}")
    if not (min(weights) >= 0 and sum(weights) > 0):
        raise ValueError(f"weights: numbers of at least 0, one above 0, expected, got {weights}")


def _loss(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    wide = logits.float()
    return torch.logsumexp(wide, -1) - wide.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def _variance(wide: torch.Tensor) -> torch.Tensor:
    """Of [..., H] float32, in two passes: as exact as `var`, and several times as fast on a CPU."""
    centred = wide - wide.mean(-1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=-1).square_().div_(wide.shape[-1])


def _expect_states(states: torch.Tensor) -> None:
    expect_shape("states", states, ("B", None), ("S", None), ("H", None))
    expect_float("states", states)
