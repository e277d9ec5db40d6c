"""The preallocated ring buffer of whole blocks: structure of arrays, a cursor that moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cmr.kernels.ring_write import (
    Columns,
    ring_link,
    ring_reserve,
    ring_write_heads,
    ring_write_index,
)
from cmr.memory.sessions import NO_SESSION

NO_SLOT = -1


@dataclass(frozen=True)
class LayerShape:
    """What one target layer stores of a token, and where.

    Attributes:
        heads: key/value heads (1 for hidden states).
        key_dim: width of a head's key; for hidden states the model's width.
        value_dim: width of a head's value, 0 where only states are stored.
        dtype: data type of the stored tensors.
        device: device of the layer.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device


Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass
class LayerSource:
    """What one layer gives to store, as the model computed it.

    Attributes:
        keys: `[batch, heads, tokens, dim]`, or hidden states `[batch, 1, tokens, hidden]`.
        values: the same shape, None for hidden states.
        turned: cosine and sine `[batch, tokens, rotary_dim]` float32 by which the keys are rotated:
            they are un-rotated on their way; None where they are not rotated.
    """

    keys: torch.Tensor
    values: torch.Tensor | None = None
    turned: Angles | None = None


@dataclass
class BlockBatch:
    """`n` blocks to store, in the order of their text within each session.

    Everything is given as the model computed it, row by row; `pick` says which blocks of which rows
    are stored.

    Attributes:
        sessions: `n` session numbers.
        token_ids: `[batch, tokens]` int64.
        positions: `[batch, tokens]` int64 positions in the session's text; -1 marks padding.
        index: `[batch, tokens, hidden]` states at the index layer, not yet normalised.
        layers: layer number to what it gives, `tokens` long.
        relevance: `[batch, ceil(tokens / block_size)]` float32 or None.
        pick: `[n]` int64: row * ceil(tokens / block_size) + block; behind a row's end is padding.
            None: all blocks, row by row.
    """

    sessions: Sequence[int]
    token_ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    layers: Mapping[int, LayerSource]
    relevance: torch.Tensor | None = None
    pick: torch.Tensor | None = None


class RingBuffer:
    """Whole blocks of tokens in preallocated tensors; the oldest block gives way to a new one.

    Args:
        slots: number of blocks that fit.
        block_size: tokens in a block.
        hidden: width of the states at the index layer.
        layers: layer number (index into `hidden_states`) to what it stores.
        index_dtype: data type of the index vectors.
        device: device of the index and of the shared columns.

    Attributes:
        keys: layer number to `[slots, heads, block_size, key_dim]`.
        values: the same of values; no entry where hidden states are stored.
        index: `[slots, block_size, hidden]` unit states at the index layer.
        columns: what is known of each slot, see `Columns`, with the cursor on the device: blocks
            ever written. Numbers in `created` start at 1 and never come twice.
        epoch: counts the times that blocks were emptied.

    Raises:
        ValueError: for fewer than one slot.
    """

    def __init__(
        self,
        *,
        slots: int,
        block_size: int,
        hidden: int,
        layers: Mapping[int, LayerShape],
        index_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if slots < 1:
            raise ValueError(f"a ring buffer needs at least 1 slot, got {slots}")
        self.slots = slots
        self.block_size = block_size
        self.device = device
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        # Not zeroed: no slot is read before it is written, and pages that are never written stay
        # with the operating system on a CPU.
        for number, shape in layers.items():
            at: dict[str, Any] = {"dtype": shape.dtype, "device": shape.device}
            self.keys[number] = torch.empty(slots, shape.heads, block_size, shape.key_dim, **at)
            if shape.value_dim:
                size = (slots, shape.heads, block_size, shape.value_dim)
                self.values[number] = torch.empty(size, **at)
        self.index = torch.empty(slots, block_size, hidden, dtype=index_dtype, device=device)
        column: dict[str, Any] = {"dtype": torch.int64, "device": device}
        nothing = torch.zeros(slots, **column)
        nowhere = torch.full((slots,), -1, **column)
        self.columns = columns = Columns(
            cursor=torch.zeros(1, **column),
            session=nowhere.clone(),
            created=nothing.clone(),
            successor=nowhere.clone(),
            predecessor=nowhere,
            last_access=nothing.clone(),
            access_count=nothing,
            relevance=torch.zeros(slots, device=device),
            token_ids=torch.zeros(slots, block_size, **column),
            positions=torch.full((slots, block_size), -1, **column),
        )
        self.cursor, self.relevance = columns.cursor, columns.relevance
        self.token_ids, self.positions = columns.token_ids, columns.positions
        self.session, self.created = columns.session, columns.created
        self.successor, self.predecessor = columns.successor, columns.predecessor
        self.last_access, self.access_count = columns.last_access, columns.access_count
        self.epoch = 0
        self._clock = self._start = 0
        self.recalls = 0
        self._owner: list[int] = [NO_SESSION] * slots
        self._last: dict[int, int] = {}

    # -- size ------------------------------------------------------------------------------------

    @property
    def written(self) -> int:
        """Blocks written since the buffer was last empty."""
        return self._clock - self._start

    @property
    def high_water(self) -> int:
        """Slots from 0 on that were ever written: what a search has to look at."""
        return min(self.written, self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of all preallocated tensors."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def blocks_of(self, session: int) -> int:
        """Number of blocks that the session has stored."""
        return self._owner.count(session)

    def has(self, sessions: Sequence[int]) -> bool:
        """Whether any of the sessions has a stored block. Host only: no device sync."""
        return any(s in self._last for s in sessions)

    def stored_tokens(self, session: int | None = None) -> int:
        """Stored tokens without padding. Reads the device: for people, not for the hot path."""
        own = self.session != NO_SESSION if session is None else self.session == session
        return int(((self.positions >= 0) & own[:, None]).sum())

    # -- writing ---------------------------------------------------------------------------------

    def write(self, batch: BlockBatch) -> torch.Tensor:
        """Store the blocks in place of the oldest ones; returns their slots, `[n]` int64.

        Raises:
            ValueError: when more blocks are given than there are slots, or a layer is missing.
        """
        n = len(batch.sessions)
        if n > self.slots:
            raise ValueError(f"at most {self.slots} blocks fit into the buffer, got {n} at once")
        self._check(batch.layers)
        if n == 0:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        sessions = torch.tensor(list(batch.sessions), device=self.device)
        pick = torch.arange(n) if batch.pick is None else batch.pick
        pick, relevance = pick.to(self.device), batch.relevance
        reserved = ring_reserve(self.columns, sessions)
        for number, source in batch.layers.items():
            self._write_layer(number, source, reserved.slots, pick)
        ring_write_index(self.index, None, reserved.slots, pick, batch.index.to(self.device))
        ring_link(
            self.columns,
            reserved,
            sessions,
            batch.token_ids.to(self.device),
            batch.positions.to(self.device),
            None if relevance is None else relevance.to(self.device),
            pick,
        )
        self._own(batch.sessions)
        return reserved.slots

    def _check(self, layers: Mapping[int, LayerSource]) -> None:
        """Raises before anything is written."""
        if set(layers) != set(self.keys):
            raise ValueError(f"layers {sorted(self.keys)} expected, got {sorted(layers)}")
        for number, source in layers.items():
            stored = {"keys": self.keys[number], "values": self.values.get(number)}
            for name, store in stored.items():
                given = getattr(source, name)
                if store is None or given is None:
                    if store is not given:
                        has = "no values, got some" if store is None else "values, got none"
                        raise ValueError(f"layer {number} stores {has}")
                elif given.ndim != 4 or given.shape[1::2] != store.shape[1::2]:
                    wanted = f"[batch, {store.shape[1]}, tokens, {store.shape[3]}]"
                    raise ValueError(
                        f"layer {number}: {name} of shape {wanted} expected, "
                        f"got {list(given.shape)}"
                    )

    def _write_layer(
        self, number: int, source: LayerSource, slots: torch.Tensor, pick: torch.Tensor
    ) -> None:
        keys, values = source.keys, source.values
        device = self.keys[number].device
        cos, sin = source.turned or (None, None)
        ring_write_heads(
            self.keys[number],
            self.values.get(number),
            slots.to(device),
            pick.to(device),
            keys.to(device),
            None if values is None else values.to(device),
            None if cos is None else cos.to(device),
            None if sin is None else sin.to(device),
        )

    def _own(self, sessions: Sequence[int]) -> None:
        """The host's own account of who owns what: no question to the device is needed."""
        slots = [(self.written + i) % self.slots for i in range(len(sessions))]
        taken = set(slots)
        for session, last in list(self._last.items()):
            if last in taken:  # the session's newest block goes: nothing of it is left
                del self._last[session]
        for slot, session in zip(slots, sessions, strict=True):
            self._owner[slot] = session
            self._last[session] = slot
        self._clock += len(sessions)

    def changed_since(self, epoch: int, written: int) -> list[tuple[int, int]]:
        """Half-open ranges of slots that were written since `epoch` and `written` were these."""
        if epoch != self.epoch or self.written - written >= self.slots:
            return [(0, self.high_water)]
        first, last = written % self.slots, self.written % self.slots
        if self.written == written:
            return []
        return (
            [(first, last)] if first < last else [(first, self.slots), *[(0, last)][: bool(last)]]
        )

    # -- reading ---------------------------------------------------------------------------------

    def gather(self, layer: int, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys and values of a block table.

        Args:
            layer: layer number.
            table: `[batch, blocks]` int64 slots; entries below 0 read slot 0 and must be masked.

        Returns:
            `[batch, heads, blocks * block_size, dim]` each; values are None for stored states.
        """
        stores = [self.keys[layer]] + ([self.values[layer]] if layer in self.values else [])
        where = table.clamp(min=0).to(stores[0].device)
        rows, blocks = where.shape
        out = []
        for store in stores:
            picked = store.index_select(0, where.reshape(-1))
            picked = picked.view(rows, blocks, *store.shape[1:]).transpose(1, 2)
            out.append(picked.reshape(rows, store.shape[1], blocks * self.block_size, -1))
        return out[0], out[1] if len(out) > 1 else None

    def touch(self, slots: torch.Tensor) -> None:
        """Count a recall of the given slots (any shape; entries below 0 count for nothing)."""
        self.recalls += 1
        flat = slots.reshape(-1)
        read = (flat >= 0).to(self.access_count.dtype)
        flat = flat.clamp(min=0)
        self.access_count.index_add_(0, flat, read)
        self.last_access.scatter_reduce_(0, flat, read * self.recalls, "amax")

    # -- forgetting ------------------------------------------------------------------------------

    def clear(self, session: int | None = None) -> int:
        """Zero every block of the session, or of all; returns how many blocks were emptied."""
        owned = [
            i
            for i, owner in enumerate(self._owner)
            if owner != NO_SESSION and session in (None, owner)
        ]
        self.epoch += 1
        if session is None:
            # Slots start from 0 again, while a block's number never comes twice: who still knows a
            # block by its number must not find another one in its slot.
            self._clock = self._start = -(-self._clock // self.slots) * self.slots
            self.cursor.fill_(self._clock)
        if not owned:
            return 0
        slots = torch.tensor(owned, device=self.device)
        for tensor in self._tensors():
            tensor.index_fill_(0, slots.to(tensor.device), 0)
        for column in (self.positions, self.session, self.successor, self.predecessor):
            column.index_fill_(0, slots, -1)
        for slot in owned:
            self._owner[slot] = NO_SESSION
        for number in [s for s in self._last if session in (None, s)]:
            del self._last[number]
        return len(owned)

    def _tensors(self) -> list[torch.Tensor]:
        shared = [column for column in self.columns if column is not self.cursor]
        return [*self.keys.values(), *self.values.values(), self.index, *shared]
