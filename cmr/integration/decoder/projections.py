"""Queries, keys and values as an attention module makes them, before their rotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cmr.integration.decoder.families import Family

QUERY, KEY, VALUE = 0, 1, 2


def split(
    attention: Any,
    states: torch.Tensor,
    names: tuple[str, ...],
    heads: tuple[int, int],
    parts: Sequence[int],
) -> list[torch.Tensor]:
    """A projection each for queries, keys and values; only those wanted are computed."""
    counts = (heads[0], heads[1], heads[1])
    return [_cut(getattr(attention, names[part])(states), counts[part]) for part in parts]


def side_by_side(
    attention: Any,
    states: torch.Tensor,
    names: tuple[str, ...],
    heads: tuple[int, int],
    parts: Sequence[int],
) -> list[torch.Tensor]:
    """One projection: all queries, then all keys, then all values (GPT-2, Phi-3)."""
    of_queries, of_keys = heads
    fused = _cut(getattr(attention, names[0])(states), of_queries + 2 * of_keys)
    found = fused.split([of_queries, of_keys, of_keys], dim=2)
    return [found[part] for part in parts]


def by_group(
    attention: Any,
    states: torch.Tensor,
    names: tuple[str, ...],
    heads: tuple[int, int],
    parts: Sequence[int],
) -> list[torch.Tensor]:
    """One projection: for each key-value head its queries, its key, its value.

    With as many key-value heads as heads that is a layout head by head (GPT-NeoX, the first
    Falcons), with one it is all queries, a key, a value (Falcon 7B).
    """
    group = heads[0] // heads[1]
    fused = getattr(attention, names[0])(states)
    fused = fused.view(*states.shape[:2], heads[1], group + 2, -1)
    found = (fused[..., :group, :].flatten(2, 3), fused[..., group, :], fused[..., group + 1, :])
    return [found[part] for part in parts]


Layout = Callable[
    [Any, torch.Tensor, tuple[str, ...], tuple[int, int], Sequence[int]], list[torch.Tensor]
]
LAYOUTS: dict[str, Layout] = {"split": split, "side_by_side": side_by_side, "by_group": by_group}
"""What `Family.projection` names. A layout takes the attention module, the normed states, the
names of its projections, the numbers of query and of key-value heads, and which of queries (0),
keys (1) and values (2) are wanted; it gives those as `[batch, tokens, heads, dim]`."""


def project(
    family: Family,
    block: Any,
    states: torch.Tensor,
    heads: tuple[int, int],
    parts: Sequence[int],
) -> list[torch.Tensor]:
    """Un-rotated queries, keys or values of states that enter a block, normed where they are.

    Args:
        family: where the block keeps what, and in which layout.
        block: of the decoder.
        states: `[batch, tokens, hidden]`.
        heads: numbers of query heads and of key-value heads.
        parts: which are wanted, of `QUERY`, `KEY` and `VALUE`.

    Returns:
        Of each part `[batch, heads, tokens, dim]`.
    """
    attention = getattr(block, family.attention)
    norm = next((name for name in family.norms if hasattr(block, name)), None)
    if norm is not None:
        states = getattr(block, norm)(states)
    found = LAYOUTS[family.projection](attention, states, family.names, heads, parts)
    norms = (family.query_norm, family.key_norm, None)
    return [
        _normed(attention, norms[part], x, family.norm_by_head).transpose(1, 2)
        for part, x in zip(parts, found, strict=True)
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
