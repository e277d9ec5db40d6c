"""Columns of tokens `[batch, tokens, ...]` by name, in chunks as they came."""

from __future__ import annotations

import torch

Columns = dict[str, torch.Tensor]


def gather(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`[batch, n, ...]` of `[batch, tokens, ...]`, at places `[batch, n]`."""
    places = places.to(x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], places]


def behind(chunks: list[Columns], tokens: int) -> list[Columns]:
    """The chunks without their first tokens; the last chunk stays, if without any."""
    kept = []
    for chunk in chunks:
        held = next(iter(chunk.values())).shape[1]
        if tokens < held or chunk is chunks[-1]:
            # Copies: a view would keep what is gone alive.
            kept.append({n: x[:, tokens:].clone() if tokens else x for n, x in chunk.items()})
        tokens = max(0, tokens - held)
    return kept
