"""How strongly memory is read: a bias on its logits that follows how sure retrieval is."""

from __future__ import annotations

import torch

from cmr.config import ReweaveConfig

FULL_BIAS = 2.0
"""Bias where a passage stands out: memory_weight of about 0.88 (docs/how-it-works.md)."""
UNSURE, SURE = 0.8, 1.15
"""Certainties between which the bias rises from 0 to `FULL_BIAS`."""


def memory_bias(certainty: torch.Tensor, reweave: ReweaveConfig) -> torch.Tensor:
    """The bias added to each row's memory logits.

    Args:
        certainty: `[batch]` float32 certainty of the search.
        reweave: a fixed `memory_weight`, or `auto`.

    Returns:
        `[batch]` float32: `logit(memory_weight)`, or what `auto` makes of the certainty.
    """
    fixed = reweave.bias
    if fixed is not None:
        return torch.full_like(certainty, fixed)
    return FULL_BIAS * ((certainty - UNSURE) / (SURE - UNSURE)).clamp(0.0, 1.0)
