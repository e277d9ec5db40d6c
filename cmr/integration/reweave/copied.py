"""What is copied of recalled tokens: each row those that it reads, and no more columns."""

from __future__ import annotations

import torch


def columns_read(mask: torch.Tensor) -> torch.Tensor | None:
    """Which columns `[batch, most]` int64 each row copies: those it reads, then others.

    None where all are copied: elsewhere than on a CPU their number would have to come from the
    device, and what is read in blocks keeps them whole.
    """
    if mask.device.type != "cpu":
        return None
    most = int(mask.sum(1).max()) if len(mask) else 0
    if most in (0, mask.shape[1]):
        return None
    # Stable: tokens keep their order. Rows that read less are filled up with masked ones.
    return (~mask).long().argsort(dim=1, stable=True)[:, :most]


def of_columns(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The tokens `[rows, heads, n, dim]` that stand in the columns `[rows, n]` of each row."""
    rows, heads, tokens, dim = x.shape
    # Whole rows of (row, head, token): a gather would look every feature up for itself.
    first = torch.arange(rows * heads, device=x.device).view(rows, heads, 1) * tokens
    at = (first + columns[:, None].to(x.device)).view(-1)
    return x.reshape(-1, dim).index_select(0, at).view(rows, heads, -1, dim)
