"""Queries, keys and values as an attention module makes them, before their rotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cmr.integration.decoder.families import Family

QUERY, KEY, VALUE = 0, 1, 2


Make = Callable[[str], torch.Tensor]
"""Gives what the projection of a name makes, `[batch, tokens, width]`."""
Part = Callable[[int], torch.Tensor]
"""Gives queries (0), keys (1) or values (2), `[batch, tokens, heads, dim]`."""


def split(make: Make, names: tuple[str, ...], heads: tuple[int, int]) -> Part:
    """A projection each for queries, keys and values; only those asked for are computed."""
    return lambda part: _cut(make(names[part]), heads[0] if part == QUERY else heads[1])


def side_by_side(make: Make, names: tuple[str, ...], heads: tuple[int, int]) -> Part:
    """One projection: all queries, then all keys, then all values (GPT-2, Phi-3)."""
    of_queries, of_keys = heads
    fused = _cut(make(names[0]), of_queries + 2 * of_keys)
    return fused.split([of_queries, of_keys, of_keys], dim=2).__getitem__


def by_group(make: Make, names: tuple[str, ...], heads: tuple[int, int]) -> Part:
    """One projection: for each key-value head its queries, its key, its value."""
    # With as many key-value heads as heads that is a layout head by head (GPT-NeoX, the first
    # Falcons), with one it is all queries, a key, a value (Falcon 7B).
    group = heads[0] // heads[1]
    fused = make(names[0])
    fused = fused.view(*fused.shape[:2], heads[1], group + 2, -1)
    found = (fused[..., :group, :].flatten(2, 3), fused[..., group, :], fused[..., group + 1, :])
    return found.__getitem__


LAYOUTS: dict[str, Callable[[Make, tuple[str, ...], tuple[int, int]], Part]] = {
    "split": split,
    "side_by_side": side_by_side,
    "by_group": by_group,
}
"""What `Family.projection` names, with `Family.names` and the numbers of query and key-value heads.
A layout that is not here is a function and a line."""


def project(
    family: Family, block: Any, states: torch.Tensor, heads: tuple[int, int], parts: Sequence[int]
) -> list[torch.Tensor]:
    """Un-rotated queries, keys or values of states `[batch, tokens, hidden]` that enter a block.

    `parts` says which are wanted, of `QUERY`, `KEY` and `VALUE`; each is `[batch, heads, tokens,
    dim]`, normed where the model norms it.
    """
    attention = getattr(block, family.attention)
    # Blocks of one family may call it differently (Falcon): the first name that is there counts.
    norm = next((name for name in family.norms if hasattr(block, name)), None)
    if norm is not None:
        states = getattr(block, norm)(states)

    def make(name: str) -> torch.Tensor:
        return getattr(attention, name)(states)

    found = LAYOUTS[family.projection](make, family.names, heads)
    norms = (family.query_norm, family.key_norm, None)
    return [
        _normed(attention, norms[part], found(part), family.norm_by_head).transpose(1, 2)
        for part in parts
    ]


def _cut(x: torch.Tensor, heads: int) -> torch.Tensor:
    """`[batch, tokens, heads * dim]` to `[batch, tokens, heads, dim]`."""
    return x.view(*x.shape[:2], heads, -1)


def _normed(attention: Any, name: str | None, x: torch.Tensor, by_head: bool) -> torch.Tensor:
    """`[batch, tokens, heads, dim]` behind a norm of each head, or of all heads side by side."""
    if name is None:
        return x
    norm = getattr(attention, name)
    return norm(x) if by_head else norm(x.flatten(2)).view(x.shape)
