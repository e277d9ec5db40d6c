"""Columns of tokens `[batch, tokens, ...]` by name, in chunks as they came."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cmr.kernels.upload import uploaded

Columns = dict[str, torch.Tensor]


def gather(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`[batch, n, ...]` of `[batch, tokens, ...]`, at places `[batch, n]`."""
    places = places.to(x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], places]


def of_rows(rows: Sequence[int], batch: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What gives some rows of any `[batch, ...]`: the tensor itself where they are all of them."""
    if list(rows) == list(range(batch)):
        return lambda x: x
    there: dict[torch.device, torch.Tensor] = {}

    def some(x: torch.Tensor) -> torch.Tensor:
        if x.device not in there:  # once, for all layers and columns
            there[x.device] = uploaded(torch.tensor(rows), x.device)
        return x.index_select(0, there[x.device])

    return some


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
