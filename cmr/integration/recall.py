"""The chosen blocks as every layer reads them, until the next search."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cmr.integration.adapter import ModelAdapter
from cmr.integration.positions import rotate
from cmr.memory.ring import RingBuffer
from cmr.retrieval.choice import Choice

LayerStates = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class Recall:
    """Keys and values of a choice, rotated for where they are read, gathered layer by layer.

    Args:
        choice: what to read.
        bias: `[batch]` float32 added to the memory's logits; `-inf` reads nothing.
        adapter: the model.
        ring: the store.
        load: gives a layer's un-rotated keys and values, `[batch, kv_heads, read, head_dim]`.
        positions: `constant`, `layout` or `true`.
        base: `[batch]` position in front of which `layout` puts the memory.
    """

    def __init__(
        self,
        choice: Choice,
        bias: torch.Tensor,
        *,
        adapter: ModelAdapter,
        ring: RingBuffer,
        load: LayerStates,
        positions: str,
        base: torch.Tensor,
    ) -> None:
        self.choice = choice
        self.bias = bias
        self._adapter, self._load = adapter, load
        table = choice.table.flatten(1)
        stored = ring.positions[table.clamp(min=0)]
        self.mask = ((stored >= 0) & (table >= 0)[..., None]).flatten(1)
        self._place = self._where(positions, stored.flatten(1), base)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _where(
        self, positions: str, stored: torch.Tensor, base: torch.Tensor
    ) -> torch.Tensor:
        """Positions `[batch, read]` that the keys are rotated to."""
        if positions == "true":
            return stored.clamp(min=0)
        if positions == "constant":
            return torch.zeros_like(stored)
        order = self.mask.cumsum(-1)
        return base[:, None] + order - order[:, -1:] - 1

    def layer(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, `[batch, kv_heads, read, head_dim]`; gathered once."""
        if number not in self._layers:
            keys, values = self._load(number)
            if self._adapter.has_rotary:
                turn = self._adapter.rotary(number, self._place.to(keys.device))
                keys = rotate(keys, *turn)
            self._layers[number] = (keys, values)
        return self._layers[number]

    def select(self, rows: torch.Tensor) -> Recall:
        """The recall of the given rows, in their order."""
        other = object.__new__(Recall)
        other.choice = self.choice.select(rows)
        other.bias, other.mask = self.bias[rows], self.mask[rows]
        other._adapter, other._place = self._adapter, self._place[rows]
        load = self._load
        other._load = lambda number: tuple(x[rows] for x in load(number))  # type: ignore[return-value]
        other._layers = {n: (k[rows], v[rows]) for n, (k, v) in self._layers.items()}
        return other
