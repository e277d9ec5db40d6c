"""The chosen blocks as every layer reads them, until the next search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from cmr.errors import NonFiniteStateError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.finite import all_finite
from cmr.integration.reweave.copied import columns_read, of_columns
from cmr.integration.reweave.held import LayerBlocks, LayerRows, StateRows, in_blocks
from cmr.integration.window.lasting import lasting
from cmr.kernels import implementation
from cmr.kernels.attention import rotate
from cmr.kernels.search.recalled import Sure, recalled, without_unread
from cmr.memory.block_store import BlockStore
from cmr.reconstruction.read_plan import ReadPlan
from cmr.retrieval.choice import Choice
from cmr.retrieval.successors import Successors, unit, what_follows

LayerStates = Callable[[int], tuple[torch.Tensor, torch.Tensor]]

FULL_BIAS = 3.0
"""Bias where a passage stands out: memory_weight of about 0.95 (docs/how-it-works.md)."""
UNSURE, SURE = 0.8, 1.325
"""Certainties between which the bias of `auto` rises from 0 to `FULL_BIAS`."""
RISE = UNSURE, SURE, FULL_BIAS


def sureness(certainty: torch.Tensor) -> torch.Tensor:
    """Certainties of any shape as shares: 0 up to `UNSURE`, 1 from `SURE` on."""
    return ((certainty - UNSURE) / (SURE - UNSURE)).clamp(0.0, 1.0)


def in_place(device: torch.device) -> bool:
    """Whether layers read blocks where they are stored, or a copy that is made once a search."""
    # The Triton kernels read through a table: a decoding step copies nothing. Plain PyTorch would
    # gather anew in every step, which is slower on a CPU, so there a copy is made.
    return implementation(device).name == "triton"


class Recall:
    """A choice, made readable layer by layer.

    Where `in_place` holds and keys are stored as they are read, un-rotated at position 0, a layer
    reads them in the store itself, and a block that has been overwritten since is not read.
    Otherwise it reads a copy.

    Args:
        fixed: added to the memory's logits; None: what the certainty of the search makes of it.
        load: gives a layer's un-rotated keys and values, `[batch, kv_heads, read * block_size,
            head_dim]`, where the store does not hold them; None where it does.
        positions: `constant`, `layout` or `true`.
        base: `[batch]` position in front of which `layout` puts the memory.
        plan: which of the tokens are read, and as what; None: all as they are.
        guarded: the first token of a text, its attention sink, is recalled and not read.

    Attributes:
        bias: `[batch]` float32 added to the memory's logits; `-inf` reads nothing.
        layers: what the layers read that have come to it so far.
        mask: `[batch, read * block_size]` bool, True where there is a token to read.
        read: which tokens the layers read, bool of that shape, or of the plan's where there is one.
        read_ids: the shape of `mask`, token ids, as they were stored when the choice was made.
        read_positions: the same shape, their positions in the session's text.
        successors: what followed the recalled tokens; None until `compare` was called.
    """

    def __init__(
        self,
        choice: Choice,
        fixed: float | None,
        *,
        adapter: ModelAdapter,
        ring: BlockStore,
        load: LayerStates | None,
        positions: str,
        base: torch.Tensor,
        plan: ReadPlan | None = None,
        guarded: bool = False,
    ) -> None:
        self.choice = choice
        self.plan = plan
        self._adapter, self._ring, self._load = adapter, ring, load
        self._table = choice.table.flatten(1)
        self._stamps = choice.stamps.flatten(1)
        guarded = guarded and plan is None
        # Of tokens in lower tiers the host has to ask for what is indexed, tier by tier.
        lower = guarded and ring.ledger.below(0)
        index = ring.index if guarded and not lower else None
        stored = ring.positions, ring.token_ids
        # What is recalled counts as used, by which blocks are evicted and rise a tier.
        found = recalled(
            self._table, choice.within, *stored, index, ring.used, Sure(choice.certainty, *RISE)
        )
        self.bias = found.bias if fixed is None else torch.full_like(found.bias, fixed)
        self.mask, self.read_ids, self.read_positions = found.mask, found.token_ids, found.positions
        self.read = found.read
        if lower:
            self.read = self.read & ~ring.blank(self._table.clamp(min=0)).flatten(1)
        self._whole = choice.within is None and not guarded
        if plan is not None:
            self.read = plan.mask.to(self.mask.device)
        self._positions: torch.Tensor | None = None
        # Fixed until the next search: rotating anew in every step would cost more than it gives.
        self._base, self._place = base, self._where(positions, base)
        self._in_place = in_place(ring.device)
        self._columns = None if self._in_place else columns_read(self.read)
        self._steady = False
        self.layers: dict[int, LayerBlocks | LayerRows] = {}
        self._states: dict[int, StateRows] = {}
        self._angles: dict[str | None, tuple[torch.Tensor, torch.Tensor]] = {}
        self.successors: Successors | None = None

    def _places_read(self) -> torch.Tensor:
        """The store's positions, -1 where no row reads; made once, for who reads in place."""
        # In place a block is read as far as one of the rows does: positions are not a row's.
        if self._positions is None:
            held = self._ring.positions
            self._positions = held if self._whole else without_unread(held, self._table, self.read)
        return self._positions

    def _where(self, positions: str, base: torch.Tensor) -> torch.Tensor | None:
        """Positions `[batch, tokens]` that the keys are rotated to; None where they stay at 0."""
        if positions == "constant" or not self._adapter.has_rotary:
            return None
        if positions == "true":
            places = self.read_positions
            if self.plan is not None:
                places = self.plan.to(places.device).places(places)
            return places.clamp(min=0)
        # One behind the other, in the order in which they were chosen, the last one before `base`.
        order = self.read.cumsum(-1)
        return base[:, None] + order - order[:, -1:] - 1

    def steady(self) -> Recall:
        """The same, where copies of several rows keep their shape: a graph is compiled for each."""
        if len(self.read) > 1 and not self._steady:
            self._steady, self._columns, self.layers = True, None, {}
        return self

    def layer(self, number: int) -> LayerBlocks | LayerRows:
        """What block `number` of the decoder reads; put together once."""
        # Layer by layer: the first ones run while what the last ones read is gathered.
        if number not in self.layers:
            self.layers[number] = self._put_together(number)
        return self.layers[number]

    @lasting()
    def _put_together(self, number: int) -> LayerBlocks | LayerRows:
        if self._in_place:
            return self._stored(number) or self._in_blocks(number)
        return self._copied(number)

    def _stored(self, number: int) -> LayerBlocks | None:
        """The store itself, where it holds keys as they are read, beside the columns."""
        ring = self._ring
        keys = ring.keys.get(number)
        moved = self._place is not None and self._adapter.rotates(number)
        if self._load is not None or self.plan is not None or moved or keys is None:
            return None
        # The columns lie beside the index. Where a model is spread over devices, a layer elsewhere
        # would wait for them in every step.
        if keys.device != ring.device:
            return None
        # Text that comes later may take these slots. Whoever reads compares the stamps, the blocks'
        # numbers at the time of the search, with the numbers that are there now.
        columns = (self._table, self._stamps, ring.created, self._places_read())
        return LayerBlocks(keys, ring.values[number], *columns)

    def _copied(self, number: int) -> LayerRows:
        """A copy of what one layer reads, on the layer's device, rotated."""
        chosen = self._columns
        direct = chosen is not None and self._load is None and self.plan is None
        keys, values = self._recalled(number, chosen if direct else None)
        self._require_finite(number, keys, values)
        if self.plan is not None:
            plan = self.plan.to(keys.device)
            keys, values = plan.apply(keys), plan.apply(values)
        place = self._place if self._adapter.rotates(number) else None
        mask = self.read
        if chosen is not None:
            mask = mask.gather(1, chosen)
            place = None if place is None else place.gather(1, chosen)
            if not direct:
                keys, values = of_columns(keys, chosen), of_columns(values, chosen)
        if place is not None:
            keys = rotate(keys, *self._turns(number, place.to(keys.device)))
        whole = not self._steady and mask.device.type == "cpu" and bool(mask.all())
        return LayerRows(keys, values, None if whole else mask.to(keys.device))

    def _require_finite(self, number: int, *recalled: torch.Tensor) -> None:
        """Raises `NonFiniteStateError` where what was stored has been damaged since."""
        # Only what is finite is stored, so it is the memory or the disk that lies. A GPU is not
        # asked: it would be waited for.
        looked = [part for part in recalled if part.device.type == "cpu"]
        if not all_finite(looked) and not all(bool(part.isfinite().all()) for part in looked):
            raise NonFiniteStateError(
                f"layer {number}: finite stored states expected, got NaN or infinite ones: they "
                "were damaged in memory or on the disk"
            )

    def _recalled(
        self, number: int, columns: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Un-rotated keys and values of what was recalled, on the layer's device.

        `columns` `[batch, n]` int64: of these tokens alone, where the store holds them.
        """
        # Where states are stored for themselves they stand for both, as one head.
        if self._load is not None:
            return self._load(number)
        keys, values = self._ring.gather(number, self._table, columns)
        return keys, keys if values is None else values

    def _in_blocks(self, number: int) -> LayerBlocks:
        """A copy as a store of its own: the kernels read blocks through a table only."""
        rows = self._copied(number)
        batch, device = len(rows.keys), rows.keys.device
        size = self._ring.block_size
        held = in_blocks(torch.where(self.read, 0, -1).to(device)[:, None, :, None], size)
        entries = torch.arange(len(held), device=device).view(batch, -1)
        created = torch.zeros(len(held), dtype=torch.int64, device=device)
        keys, values = in_blocks(rows.keys, size), in_blocks(rows.values, size)
        return LayerBlocks(
            keys, values, entries, torch.zeros_like(entries), created, held[:, 0, :, 0].contiguous()
        )

    def _turns(self, number: int, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for the keys, computed once for layers of a kind."""
        kind = self._adapter.rotary_kinds[number]
        if kind not in self._angles:
            self._angles[kind] = self._adapter.rotary(number, place, reach=self._base)
        cos, sin = self._angles[kind]
        return cos.to(place.device), sin.to(place.device)

    def stored_states(self, number: int) -> LayerBlocks | None:
        """Where the store holds the states that block `number` reads, `[slots, block, hidden]`.

        None where they lie elsewhere, or only some of them are read.
        """
        ring = self._ring
        if self._load is not None or self.plan is not None:
            return None
        states = ring.keys[number][:, 0]
        columns = (self._table, self._stamps, ring.created, self._places_read())
        return LayerBlocks(states, states, *(x.to(states.device) for x in columns))

    @property
    def nbytes(self) -> int:
        """Bytes of the copies that layers read, as far as they were made."""
        copies = [
            held
            for number, held in self.layers.items()
            if held.keys is not self._ring.keys.get(number)
        ]
        tensors = [part for held in copies for part in (held.keys, held.values)]
        tensors += [held.states for held in self._states.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def state_rows(self, number: int) -> StateRows:
        """A copy of the stored states that block `number` reads; made once."""
        if number not in self._states:
            with lasting():
                self._states[number] = self._state_rows(number)
        return self._states[number]

    def _state_rows(self, number: int) -> StateRows:
        states = self._recalled(number)[0]
        passages = self.passages.expand(len(states), -1)
        if self.plan is not None:
            plan = self.plan.to(states.device)
            states = plan.apply(states)
            first = plan.members[..., 0].clamp(min=0).to(passages.device)
            passages = passages.gather(1, first)
        mask = self.read.to(states.device)
        return StateRows(states[:, 0], mask, passages.to(states.device))

    @lasting()
    def compare(self, layers: Sequence[int], project: bool) -> None:
        """Take note of what followed the recalled tokens, to compare new ones with at `layers`.

        A copy, to be made before anything is stored again: a slot may get another block. `project`:
        states are stored for themselves, and keys and values are made of them.
        """
        read = self.mask
        if self.plan is not None:
            read = read & self.plan.used(read.shape[1]).to(read.device)
        token_ids, known = what_follows(self._table, self._ring.columns, read)
        keys = []
        for number in layers:
            parts = self._recalled(number)
            if project:
                parts = self._adapter.keys_values(number, parts[0][:, 0])
            keys.append(unit(*parts))
        self.successors = Successors(
            tuple(keys),
            self.read_ids,
            self.read_positions,
            token_ids,
            known,
            self.choice.certainty,
        )

    @property
    def passages(self) -> torch.Tensor:
        """`[1, recalled]` int64 number of the passage that each recalled token is of."""
        return passages_of(self.choice.table, self._ring.block_size)[None]

    @lasting()
    def select(self, rows: torch.Tensor) -> Recall:
        """The recall of the given rows, in their order."""
        rows = rows.to(self._table.device)
        other = copy.copy(self)
        other.choice = self.choice.select(rows)
        other.plan = None if self.plan is None else self.plan.select(rows)
        for name in ("read", "bias", "mask", "read_ids", "read_positions"):
            setattr(other, name, getattr(self, name)[rows])
        other._table, other._stamps = self._table[rows], self._stamps[rows]
        other._base = self._base[rows]
        other._place = None if self._place is None else self._place[rows]
        load = self._load
        if load is not None:

            def chosen(number: int) -> tuple[torch.Tensor, torch.Tensor]:
                keys, values = load(number)
                return keys[rows], values[rows]

            other._load = chosen
        # Of positions row by row, and made of them: other rows have others.
        other._angles = {}
        other._states = {number: held.select(rows) for number, held in self._states.items()}
        other._columns = None if self._columns is None else self._columns[rows]
        other.layers = {number: held.select(rows) for number, held in self.layers.items()}
        other.successors = None if self.successors is None else self.successors.select(rows)
        return other


def passages_of(table: torch.Tensor, size: int) -> torch.Tensor:
    """`[passages * run * size]` int64 number of the passage of each column of a table of blocks."""
    passages, run = table.shape[1:]
    return torch.arange(passages, device=table.device).repeat_interleave(run * size)
