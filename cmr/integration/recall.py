"""The chosen blocks as every layer reads them, until the next search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cmr.integration.adapter import ModelAdapter
from cmr.kernels import implementation
from cmr.kernels.reference.rotary import rotate
from cmr.memory.ring import RingBuffer
from cmr.retrieval.choice import Choice

LayerStates = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class LayerBlocks:
    """Where one layer finds the chosen blocks: in the store itself, through a table.

    Attributes:
        keys: `[slots, kv_heads, block_size, head_dim]`, rotated for where they are read.
        values: the same shape.
        table: `[batch, read]` int64 slots of the chosen blocks, -1 for none.
        stamps: `[batch, read]` int64, the numbers they had when they were chosen.
        created: `[slots]` int64, the numbers of the blocks that are in the slots now: who has
            another one than its stamp is not read.
        positions: `[slots, block_size]` int64, below 0 where a block holds no token.
    """

    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor
    stamps: torch.Tensor
    created: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class LayerRows:
    """What one layer reads of the chosen blocks, copied together.

    Attributes:
        keys: `[batch, kv_heads, read, head_dim]`, rotated for where they are read.
        values: the same shape.
        mask: `[batch, read]` bool, True where a token may be read; None where all may be.
    """

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None


def in_place(device: torch.device) -> bool:
    """Whether layers read blocks where they are stored, or a copy that is made once a search.

    The Triton kernels read through a table: a decoding step copies nothing. Plain PyTorch would
    gather anew in every step, which is slower on a CPU, so there a copy is made.
    """
    return implementation(device).name == "triton"


class Recall:
    """A choice, made readable layer by layer.

    Where `in_place` holds and keys are stored as they are read, un-rotated at position 0, a layer
    reads them in the ring buffer itself, and a block that has been overwritten since is not read.
    Otherwise it reads a copy.

    Args:
        choice: what to read.
        bias: `[batch]` float32 added to the memory's logits; `-inf` reads nothing.
        adapter: the model.
        ring: the store.
        load: gives a layer's un-rotated keys and values, `[batch, kv_heads, read * block_size,
            head_dim]`, where the ring buffer does not hold them; None where it does.
        positions: `constant`, `layout` or `true`.
        base: `[batch]` position in front of which `layout` puts the memory.

    Attributes:
        mask: `[batch, read * block_size]` bool, True where there is a token to read.
        read_ids: the same shape, token ids, as they were stored when the choice was made.
        read_positions: the same shape, their positions in the session's text.
    """

    def __init__(
        self,
        choice: Choice,
        bias: torch.Tensor,
        *,
        adapter: ModelAdapter,
        ring: RingBuffer,
        load: LayerStates | None,
        positions: str,
        base: torch.Tensor,
    ) -> None:
        self.choice = choice
        self.bias = bias
        self._adapter, self._ring, self._load = adapter, ring, load
        self._table = choice.table.flatten(1)
        self._stamps = choice.stamps.flatten(1)
        stored = ring.positions[self._table.clamp(min=0)]
        held = (stored >= 0) & (self._table >= 0)[..., None]
        self._held = torch.where(held, stored, -1)
        self.mask = held.flatten(1)
        ids = ring.token_ids[self._table.clamp(min=0)].flatten(1)
        # Where the table names no block, slot 0 was looked up: nothing of it may stay.
        self.read_ids = ids.masked_fill(~self.mask, 0)
        self.read_positions = stored.flatten(1).masked_fill(~self.mask, -1)
        self._place = self._where(positions, base)
        self._columns = _dense(self.mask)
        self._layers: dict[int, LayerBlocks | LayerRows] = {}
        self._angles: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _where(self, positions: str, base: torch.Tensor) -> torch.Tensor | None:
        """Positions `[batch, tokens]` that the keys are rotated to; None where they stay at 0."""
        if positions == "constant" or not self._adapter.has_rotary:
            return None
        if positions == "true":
            return self.read_positions.clamp(min=0)
        order = self.mask.cumsum(-1)
        return base[:, None] + order - order[:, -1:] - 1

    def layer(self, number: int) -> LayerBlocks | LayerRows:
        """What block `number` of the decoder reads; put together once."""
        if number not in self._layers:
            if not in_place(self._ring.device):
                self._layers[number] = self._copied(number)
            else:
                self._layers[number] = self._stored(number) or self._in_blocks(number)
        return self._layers[number]

    def _stored(self, number: int) -> LayerBlocks | None:
        """The store itself, where it holds keys as they are read, beside the columns."""
        ring = self._ring
        keys = ring.keys.get(number)
        if self._load is not None or self._place is not None or keys is None:
            return None
        if keys.device != ring.device:
            return None
        columns = (self._table, self._stamps, ring.created, ring.positions)
        return LayerBlocks(keys, ring.values[number], *columns)

    def _copied(self, number: int) -> LayerRows:
        """A copy of what one layer reads, on the layer's device, rotated."""
        if self._load is not None:
            keys, values = self._load(number)
        else:
            keys, values = self._ring.gather(number, self._table)  # type: ignore[assignment]
        place, mask = self._place, None if self._columns is not None else self.mask
        if self._columns is not None:
            keys, values = keys[:, :, self._columns], values[:, :, self._columns]
            place = None if place is None else place[:, self._columns]
        if place is not None:
            keys = rotate(keys, *self._turns(number, place.to(keys.device)))
        return LayerRows(keys, values, None if mask is None else mask.to(keys.device))

    def _in_blocks(self, number: int) -> LayerBlocks:
        """A copy as a store of its own: entry i of the choice is in slot i."""
        rows = self._copied(number)
        batch, read = self._table.shape
        device = rows.keys.device
        entries = torch.arange(batch * read, device=device).view(batch, read)
        created = torch.zeros(batch * read, dtype=torch.int64, device=device)
        return LayerBlocks(
            self._blocks(rows.keys),
            self._blocks(rows.values),
            torch.where(self._table.to(device) >= 0, entries, -1),
            torch.zeros_like(entries),
            created,
            self._held.flatten(0, 1).to(device),
        )

    def _blocks(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, heads, read * block_size, dim]` to `[batch * read, heads, block_size, dim]`."""
        rows, heads, _, dim = x.shape
        x = x.view(rows, heads, -1, self._ring.block_size, dim).transpose(1, 2)
        return x.reshape(-1, heads, self._ring.block_size, dim)

    def _turns(self, number: int, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for the keys, computed once for layers of a kind."""
        kind = self._adapter.rotary_kind(number)
        if kind not in self._angles:
            self._angles[kind] = self._adapter.rotary(number, place)
        cos, sin = self._angles[kind]
        return cos.to(place.device), sin.to(place.device)

    def states(self, number: int) -> LayerBlocks:
        """Where block `number` finds stored states, `[slots, block_size, hidden]` as keys."""
        ring = self._ring
        if self._load is not None:
            held = self._in_blocks(number)
            states = held.keys[:, 0]
            return replace(held, keys=states, values=states)
        states = ring.keys[number][:, 0]
        columns = (self._table, self._stamps, ring.created, ring.positions)
        return LayerBlocks(states, states, *(x.to(states.device) for x in columns))

    def gathered_states(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the stored states, `[batch, read, hidden]`, and which may be read."""
        if self._load is not None:
            states = self._load(number)[0]
        else:
            states, _ = self._ring.gather(number, self._table)
        return states[:, 0], self.mask.to(states.device)

    def select(self, rows: torch.Tensor) -> Recall:
        """The recall of the given rows, in their order."""
        other = object.__new__(Recall)
        other.choice = self.choice.select(rows)
        other.bias, other.mask = self.bias[rows], self.mask[rows]
        other.read_ids = self.read_ids[rows]
        other.read_positions = self.read_positions[rows]
        other._adapter, other._ring = self._adapter, self._ring
        other._table, other._stamps = self._table[rows], self._stamps[rows]
        other._held = self._held[rows]
        other._place = None if self._place is None else self._place[rows]
        load = self._load

        def chosen(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            assert load is not None
            keys, values = load(number)
            return keys[rows], values[rows]

        other._load = None if load is None else chosen
        other._angles = {}
        other._columns = self._columns if len(rows) == 1 else None
        other._layers = {number: _rows(held, rows) for number, held in self._layers.items()}
        return other


def _dense(mask: torch.Tensor) -> torch.Tensor | None:
    """The columns to copy where one row reads alone; None where the mask must stay.

    Elsewhere the number of columns would have to come from the device, or differ between rows; and
    what is read in blocks keeps them whole.
    """
    if mask.device.type != "cpu" or mask.shape[0] != 1 or in_place(mask.device):
        return None
    return mask[0].nonzero()[:, 0] if bool(mask.any()) else None


def _rows(held: LayerBlocks | LayerRows, rows: torch.Tensor) -> LayerBlocks | LayerRows:
    if isinstance(held, LayerRows):
        rows = rows.to(held.keys.device)
        mask = None if held.mask is None else held.mask[rows]
        return LayerRows(held.keys[rows], held.values[rows], mask)
    rows = rows.to(held.table.device)
    return replace(held, table=held.table[rows], stamps=held.stamps[rows])
