"""Whether what a model computed is finite: nothing else is stored, or read as memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch

SMALL, SMALL_THERE = 1 << 12, 1 << 20
"""Numbers of a tensor up to which copying several together is quicker than a sum of each: on a CPU,
and on a GPU, which takes longer to begin than to copy a few megabytes."""

Parts = Mapping[str, torch.Tensor]
"""What was computed of some tokens, by what it is called: `[batch, tokens, ...]` each."""


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number is finite; the device answers once for all of them.

    False also where finite ones add up to more than their data type holds: look closer then.
    """
    alike: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for x in tensors:
        if x.is_floating_point():
            alike[x.shape, x.dtype, x.device].append(x)
    # A sum is finite only if all that it adds up is, and is the quickest of all reductions.
    sums: list[torch.Tensor] = []
    for (shape, dtype, device), some in alike.items():
        wide = torch.promote_types(dtype, torch.float32)
        small = SMALL if device.type == "cpu" else SMALL_THERE
        few = len(some) > 1 and shape.numel() <= small
        sums += [x.sum(dtype=wide) for x in ([torch.stack(some)] if few else some)]
    return not sums or all(map(math.isfinite, torch.stack([x.to(sums[0]) for x in sums]).tolist()))


def stored_of(
    index: torch.Tensor, layers: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]]
) -> list[torch.Tensor]:
    """All that is to be stored of some tokens, for `all_finite`; see `parts_of`."""
    return [index, *(x for pair in layers.values() for x in pair if x is not None)]


def parts_of(
    index: torch.Tensor,
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]],
    others: Mapping[str, torch.Tensor | None],
) -> dict[str, torch.Tensor]:
    """What is to be stored of some tokens, or judges them, by what it is called.

    `index` `[batch, tokens, hidden]` at the index layer, of each layer `[batch, heads, tokens,
    dim]`, and others `[batch, tokens, ...]`.
    """
    parts = {"the index layer": index}
    for number, (keys, values) in layers.items():
        parts[f"layer {number}"] = keys.transpose(1, 2)
        if values is not None:
            parts[f"the values of layer {number}"] = values.transpose(1, 2)
    parts.update({name: x for name, x in others.items() if x is not None})
    return parts


def not_finite(parts: Parts, stored: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which of the tokens that are `stored` are not finite, by the parts in which they are not.

    `[batch, tokens]` bool on the CPU, as is `stored`; an empty one: all of them are finite.
    """
    found = {}
    for name, x in parts.items():
        if x.is_floating_point():
            bad = ~x.isfinite().flatten(2).all(-1) if x.ndim > 2 else ~x.isfinite()
            bad = bad.cpu() & stored
            if bool(bad.any()):
                found[name] = bad
    return found
