"""What layers recall, at addresses that stay: each search writes over what the one before found."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch

from cmr.integration.reweave.aside import Aside
from cmr.integration.reweave.attention import LayerMemory
from cmr.integration.reweave.held import LayerBlocks
from cmr.integration.reweave.recall import Recall
from cmr.integration.window.lasting import lasting
from cmr.memory.block_store import BlockStore

OFF = float("-inf")


class FixedRecall:
    """The table, the bias and the rest of a `Recall`, as the layers of a replayed step read it.

    Args:
        ring: the store, whose blocks are read in place.
        rows: of the batch.
        entries: blocks that a row reads at most.
        columns: of the window.
    """

    @lasting()
    def __init__(self, ring: BlockStore, rows: int, entries: int, columns: int) -> None:
        device = ring.device
        self._ring, self.entries = ring, entries
        self._table = torch.full((rows, entries), -1, dtype=torch.int64, device=device)
        self._stamps = torch.full_like(self._table, -1)
        self._bias = torch.full((rows,), OFF, dtype=torch.float32, device=device)
        self._places = torch.empty_like(ring.positions).copy_(ring.positions)
        self._less = torch.zeros(rows, 1, 1, columns, dtype=torch.float32, device=device)
        self._looks: tuple[object, int] = (None, 0)
        self._taken: weakref.ref[Recall] | None = None

    @staticmethod
    def blocks_of(recall: Recall, ring: BlockStore, layers: Iterable[int]) -> int | None:
        """Blocks that a row reads of a recall; None: not all layers read them where they lie."""
        count = 0
        for number in layers:
            held = recall.layer(number)
            if not isinstance(held, LayerBlocks) or held.keys is not ring.keys.get(number):
                return None
            count = held.table.shape[1]
        return count

    @lasting()
    def take(self, recall: Recall | None, layers: Iterable[int]) -> None:
        """Let layers read this from now on; None: nothing."""
        before = None if self._taken is None else self._taken()
        if recall is before and (recall is not None or self._taken is None):
            return
        self._taken = None if recall is None else weakref.ref(recall)
        held = None if recall is None else recall.layer(next(iter(layers)))
        if recall is None or not isinstance(held, LayerBlocks):
            self._bias.fill_(OFF)
            return
        count = held.table.shape[1]
        if count < self.entries:
            self._table[:, count:] = -1
        self._table[:, :count] = held.table
        self._stamps[:, :count] = held.stamps
        self._bias.copy_(recall.bias)
        self._places.copy_(held.positions)

    @lasting()
    def look_less(self, less: torch.Tensor | None, start: int) -> None:
        """What layers look at less from a column on, `[rows, tokens]` or None; see `Aside`."""
        # Of the same tensor at the same place nothing is written again.
        before, self._looks = self._looks, (less, start if less is not None else 0)
        if self._looks[0] is before[0] and self._looks[1] == before[1]:
            return
        self._less.zero_()
        if less is not None:
            self._less[:, 0, 0, start : start + less.shape[1]] = less

    def aside(self, hidden: torch.Tensor, dtype: torch.dtype) -> Aside:
        """The mask of layers that read: what is hidden, and what they look at less."""
        return FixedAside(self._less.masked_fill(hidden, OFF).to(dtype))

    def layer(
        self,
        number: int,
        turn: tuple[torch.Tensor, torch.Tensor] | None,
        gates: dict[int, torch.Tensor],
        aside: Aside,
    ) -> LayerMemory:
        """What a layer reads, whatever that will be; the rest as of `LayerMemory`."""
        ring = self._ring
        columns = self._table, self._stamps, ring.created, self._places
        held = LayerBlocks(ring.keys[number], ring.values[number], *columns)
        return LayerMemory(held, self._bias, None, turn, gates, aside=aside)


class FixedAside(Aside):
    """A mask that holds for a layer whatever its own is."""

    def __init__(self, mask: torch.Tensor) -> None:
        self._mask = mask

    def over(
        self, mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        """That mask."""
        return self._mask
