"""Tensors that a decoding step writes into, kept from step to step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.integration.window.lasting import lasting

Key = tuple[int, int, torch.Size, torch.dtype, torch.device]


@dataclass(frozen=True)
class StepTensors:
    """What one layer writes in a decoding step.

    Attributes:
        local: `[parts, batch, heads, 1, dim]` float32 partial local attentions where there is more
            than one part, else `[batch, heads, 1, dim]` in the query's dtype.
        lse: `[parts, batch, heads, 1]` or `[batch, heads, 1]` float32, their log-sum-exps.
        out: `[batch, heads, 1, dim]`, a view of `[batch, 1, heads, dim]`.
        gate: `[batch, heads, 1]` float32.
    """

    local: torch.Tensor
    lse: torch.Tensor
    out: torch.Tensor
    gate: torch.Tensor


class StepScratch:
    """One set of tensors for each layer and shape; the next step writes over it.

    Nothing is allocated from the second step on, and their addresses stay.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, StepTensors] = {}

    def take(self, layer: int, query: torch.Tensor, parts: int) -> StepTensors:
        """The tensors for a query `[batch, heads, 1, dim]` of block `layer`."""
        key = (layer, parts, query.shape, query.dtype, query.device)
        if key not in self._kept:
            # They are written over in later steps, whatever mode those run in.
            with lasting():
                self._kept[key] = _tensors(query, parts)
        return self._kept[key]

    def clear(self) -> None:
        """Let all of them go."""
        self._kept.clear()


def _tensors(query: torch.Tensor, parts: int) -> StepTensors:
    batch, heads, steps, width = query.shape
    wide = torch.float32
    # The layer behind takes `[batch, 1, heads, dim]`: laid out so, nothing has to be moved.
    out = query.new_empty(batch, steps, heads, width).transpose(1, 2)
    gate = query.new_empty(batch, heads, steps, dtype=wide)
    if parts == 1:
        lse = query.new_empty(batch, heads, steps, dtype=wide)
        return StepTensors(query.new_empty(query.shape), lse, out, gate)
    local = query.new_empty(parts, *query.shape, dtype=wide)
    lse = query.new_empty(parts, batch, heads, steps, dtype=wide)
    return StepTensors(local, lse, out, gate)
