"""Logits and weighted sums of grouped-query attention, of which every attention here is made."""

from __future__ import annotations

import torch

NEG_INF = float("-inf")


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def group_logits(
    query: torch.Tensor, key: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    """Scaled (and capped) q·k of grouped-query attention, without copying keys per head.

    Of queries [B, H, S, D] and keys [B, G, L, D], where head h belongs to group h // (H / G):
    [B, G, H / G, S, L] float32, float64 for float64 inputs.
    """
    batch, heads, steps, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    # The heads of a group become further rows of one product: their keys are read once.
    rows = heads // groups * steps
    folded = query.reshape(batch * groups, rows, width)
    logits = torch.bmm(folded, key.reshape(batch * groups, length, width).transpose(1, 2))
    logits = wide(logits) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.view(batch, groups, heads // groups, steps, length)


def group_sum(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Sums [B, H, S, E] of values [B, G, L, E] by weights [B, G, H / G, S, L], in their dtype."""
    batch, groups, repeat, steps, length = weights.shape
    folded = weights.reshape(batch * groups, repeat * steps, length).to(value.dtype)
    summed = torch.bmm(folded, value.reshape(batch * groups, length, value.shape[-1]))
    return summed.view(batch, groups * repeat, steps, value.shape[-1])
