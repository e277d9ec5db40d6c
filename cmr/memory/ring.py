"""The preallocated ring buffer of whole blocks: structure of arrays, a cursor that moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cmr.kernels.reference.ring_write import ring_write, ring_write_index
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


@dataclass
class BlockBatch:
    """`n` blocks to store, in the order of their text within each session.

    Attributes:
        sessions: `n` session numbers.
        token_ids: `[n, block_size]` int64.
        positions: `[n, block_size]` int64 positions in the session's text; -1 marks padding.
        index: `[n, block_size, hidden]` states at the index layer, not yet normalised.
        layers: layer number to `(keys, values)`, un-rotated, each
            `[n, heads, block_size, dim]`; `(states, None)` where hidden states are stored.
        relevance: `[n]` float32 or None.
    """

    sessions: Sequence[int]
    token_ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]]
    relevance: torch.Tensor | None = None


class RingBuffer:
    """Whole blocks of tokens in preallocated tensors; the oldest block gives way to a new one.

    Args:
        slots: number of blocks that fit.
        block_size: tokens in a block.
        hidden: width of the states at the index layer.
        layers: layer number (index into `hidden_states`) to what it stores.
        index_dtype: data type of the index vectors.
        device: device of the index and of the shared columns.

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
        self.token_ids = torch.zeros(slots, block_size, **column)
        self.positions = torch.full((slots, block_size), -1, **column)
        self.session = torch.full((slots,), NO_SESSION, **column)
        self.successor = torch.full((slots,), NO_SLOT, **column)
        self.predecessor = torch.full((slots,), NO_SLOT, **column)
        self.relevance = torch.zeros(slots, dtype=torch.float32, device=device)
        self.created = torch.zeros(slots, **column)
        self.last_access = torch.zeros(slots, **column)
        self.access_count = torch.zeros(slots, **column)
        self.written = 0
        self.recalls = 0
        self._owner: list[int] = [NO_SESSION] * slots
        self._last: dict[int, int] = {}

    # -- size ------------------------------------------------------------------------------------

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
        if set(batch.layers) != set(self.keys):
            raise ValueError(f"layers {sorted(self.keys)} expected, got {sorted(batch.layers)}")
        if n == 0:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        first = self.written % self.slots
        numbers = [(first + i) % self.slots for i in range(n)]
        predecessors = self._relink(numbers, batch.sessions)
        slots = torch.tensor(numbers, device=self.device)
        now = torch.arange(self.written + 1, self.written + n + 1, device=self.device)
        self._write_columns(slots, batch, predecessors, now)
        for number, (keys, values) in batch.layers.items():
            where = slots.to(self.keys[number].device)
            stores = [self.keys[number]] + ([] if values is None else [self.values[number]])
            ring_write(stores, where, [keys] if values is None else [keys, values])
        self.written += n
        return slots

    def _relink(self, slots: Sequence[int], sessions: Sequence[int]) -> list[int]:
        """Take the slots from their owners and chain each to its session's last block."""
        taken = set(slots)
        predecessors = []
        for session, last in list(self._last.items()):
            if last in taken:  # the session's newest block goes: nothing of it is left
                del self._last[session]
        for slot, session in zip(slots, sessions, strict=True):
            self._owner[slot] = session
            predecessors.append(self._last.get(session, NO_SLOT))
            self._last[session] = slot
        return predecessors

    def _write_columns(
        self, slots: torch.Tensor, batch: BlockBatch, predecessors: list[int], now: torch.Tensor
    ) -> None:
        before = torch.tensor(predecessors, device=self.device)
        self._unlink(slots)
        self.token_ids[slots] = batch.token_ids.to(self.device)
        self.positions[slots] = batch.positions.to(self.device)
        self.session[slots] = torch.tensor(list(batch.sessions), device=self.device)
        self.successor[slots] = NO_SLOT
        self.predecessor[slots] = before
        linked = before >= 0
        self.successor[before[linked]] = slots[linked]
        self.created[slots] = now
        self.last_access[slots] = 0
        self.access_count[slots] = 0
        relevance = batch.relevance
        self.relevance[slots] = 0.0 if relevance is None else relevance.to(self.device)
        ring_write_index(self.index, slots, batch.index.to(self.device))

    def _unlink(self, slots: torch.Tensor) -> None:
        """Cut the chains that lead into slots about to be overwritten or emptied."""
        after = self.successor[slots]
        self.predecessor[after[after >= 0]] = NO_SLOT
        before = self.predecessor[slots]
        self.successor[before[before >= 0]] = NO_SLOT

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
        if session is None:
            self.written = 0
        if not owned:
            return 0
        slots = torch.tensor(owned, device=self.device)
        self._unlink(slots)
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
        shared = [
            self.index, self.token_ids, self.positions, self.session, self.successor,
            self.predecessor, self.relevance, self.created, self.last_access, self.access_count,
        ]  # fmt: skip
        return [*self.keys.values(), *self.values.values(), *shared]
