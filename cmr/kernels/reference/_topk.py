"""Top-k with one rule for ties: the lowest slot wins, whatever the order of the reduction."""

from __future__ import annotations

import torch

LOW_BITS = 0xFFFFFFFF


def pack(scores: torch.Tensor) -> torch.Tensor:
    """Scores [..., N] float32 with their slots, as int64 that sort like (score, -slot).

    The upper half holds the score's bits in an order-preserving form, the lower half the slot's
    complement. NaN becomes -inf, -0 becomes 0.
    """
    clean = torch.where(scores.isnan(), float("-inf"), scores + 0.0)
    bits = clean.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    slots = torch.arange(scores.shape[-1], device=scores.device)
    return (ordered << 32) | (LOW_BITS - slots)


def topk_lowest_slot(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest scores of each row, in falling order, ties by rising slot.

    Args:
        scores: [B, N] float32; -inf and NaN are never chosen. N below 2**31.
        k: at least 1; may exceed N.

    Returns:
        scores [B, k] float32 and slots [B, k] int64; -inf and -1 where fewer can be chosen.

    Raises:
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"k: an integer of at least 1 expected, got {k}")
    batch, count = scores.shape
    best = torch.full((batch, k), float("-inf"), dtype=torch.float32, device=scores.device)
    slots = torch.full((batch, k), -1, dtype=torch.int64, device=scores.device)
    taken = min(k, count)
    if taken:
        packed = pack(scores).topk(taken, dim=-1).values
        chosen = LOW_BITS - (packed & LOW_BITS)
        values = scores.gather(-1, chosen)
        usable = values > float("-inf")
        best[:, :taken] = torch.where(usable, values, float("-inf"))
        slots[:, :taken] = torch.where(usable, chosen, -1)
    return best, slots
