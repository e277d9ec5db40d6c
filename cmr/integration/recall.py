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

    Attributes:
        mask: `[batch, read]` bool, True where there is a token to read.
        read_ids: `[batch, read]` token ids, as they were stored when the choice was made.
        read_positions: `[batch, read]` their positions in the session's text.
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
        self.read_ids = ring.token_ids[table.clamp(min=0)].flatten(1)
        self.read_positions = stored.flatten(1)
        self._columns = _dense(self.mask)
        self._place = self._where(positions, self.read_positions, base)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._angles: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._states: dict[int, torch.Tensor] = {}
        self._ring = ring

    def _where(self, positions: str, stored: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
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
            place = self._place
            if self._columns is not None:
                keys, values = keys[:, :, self._columns], values[:, :, self._columns]
                place = place[:, self._columns]
            if self._adapter.has_rotary:
                keys = rotate(keys, *self._turns(number, place.to(keys.device)))
            self._layers[number] = (keys, values)
        return self._layers[number]

    def _turns(self, number: int, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for the keys, computed once for layers of a kind."""
        kind = self._adapter.rotary_kind(number)
        if kind not in self._angles:
            self._angles[kind] = self._adapter.rotary(number, place)
        cos, sin = self._angles[kind]
        return cos.to(place.device), sin.to(place.device)

    @property
    def layer_mask(self) -> torch.Tensor | None:
        """`[batch, read]` bool for the keys of `layer`; None where every one may be read."""
        return self.mask if self._columns is None else None

    def states(self, number: int) -> torch.Tensor:
        """Stored states of one layer, `[batch, read, hidden]`; gathered once.

        Until the next search the slots may be given to another session.
        """
        if number not in self._states:
            table = self.choice.table.flatten(1)
            self._states[number] = self._ring.gather(number, table)[0][:, 0]
        return self._states[number]

    def select(self, rows: torch.Tensor) -> Recall:
        """The recall of the given rows, in their order."""
        other = object.__new__(Recall)
        other.choice = self.choice.select(rows)
        other.bias, other.mask = self.bias[rows], self.mask[rows]
        other.read_ids = self.read_ids[rows]
        other.read_positions = self.read_positions[rows]
        other._ring = self._ring
        other._states = {n: x[rows] for n, x in self._states.items()}
        other._adapter, other._place = self._adapter, self._place[rows]
        load = self._load

        def chosen(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = load(number)
            return keys[rows], values[rows]

        other._load = chosen
        other._columns, other._angles = self._columns, {}
        other._layers = {n: (k[rows], v[rows]) for n, (k, v) in self._layers.items()}
        return other


def _dense(mask: torch.Tensor) -> torch.Tensor | None:
    """The columns to read where one row on a CPU reads alone; None where the mask must stay.

    Elsewhere the number of columns would have to come from the device, or differ between rows.
    """
    if mask.device.type != "cpu" or mask.shape[0] != 1 or not bool(mask.any()):
        return None
    return mask[0].nonzero()[:, 0]
