"""What scores of tokens and blocks are made of: quantiles, block means, checked weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmr.kernels.arguments import expect


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
    if reference.dim() != 1:
        raise ValueError(f"reference: shape [R] expected, got {list(reference.shape)}")
    scores = scores.float()
    if reference.numel() == 0:
        return torch.full_like(scores, 0.5)
    known = scores.contiguous()
    # Left and right of equal values: the mean of both counts a tie half.
    below = torch.searchsorted(reference, known)
    up_to = torch.searchsorted(reference, known, right=True)
    return ((below + up_to) / (2 * reference.numel())).masked_fill(scores.isnan(), 0.0)


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
    expect(("scores", scores, "B S", None), ("lengths", lengths, "B", None))
    batch, steps = scores.shape
    if block_size < 1:
        raise ValueError(f"block_size: an integer of at least 1 expected, got {block_size}")
    blocks = -(-steps // block_size)
    counts = torch.arange(blocks * block_size, device=scores.device)
    # Behind a row's end may be NaN: it is chosen away before the sum, and not multiplied by 0.
    real = (counts < steps)[None].expand(batch, -1)
    if lengths is not None:
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
