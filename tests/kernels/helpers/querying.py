"""Tokens on their way into a query at random, and places for them."""

from __future__ import annotations

import torch

from cmr.kernels.search.query import Places, Weighing


def tokens_of(
    rows: int, tokens: int, hidden: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Weighing]:
    """States in a cone, one of them all 0; which ask; their ids; and what weighs the states."""
    states = 3.0 + torch.randn(rows, tokens, hidden)
    states[0, -1] = 0
    mean = torch.nn.functional.normalize(states, dim=-1).mean((0, 1))
    weighing = Weighing(mean, torch.randn(hidden, width))
    asks = torch.rand(rows, tokens) > 0.4
    return states.to(dtype), asks, torch.randint(0, 99, (rows, tokens)), weighing


def places_of(
    rows: int, tokens: int, hidden: int, dtype: torch.dtype = torch.float32
) -> tuple[Places, Places]:
    """A query of three more tokens, and the places behind its first two; what it held is there."""
    whole = Places(
        torch.full((tokens + 3, rows, hidden), 7.0, dtype=dtype).transpose(0, 1),
        torch.full((rows, tokens + 3), 55),
        torch.full((rows, tokens + 3), 44),
        torch.zeros(rows, tokens + 3, dtype=torch.bool),
    )
    return whole, Places(*(x[:, 2 : tokens + 2] for x in whole))
