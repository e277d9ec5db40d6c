"""What one layer holds of the chosen blocks, ready to be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F

from cmr.integration.window.lasting import lasting
from cmr.reconstruction.blend import expected_best


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

    def select(self, rows: torch.Tensor) -> LayerBlocks:
        """Those of the given rows, in their order."""
        # The store is that of all rows; only what was chosen in it is a row's own.
        rows = rows.to(self.table.device)
        return replace(self, table=self.table[rows], stamps=self.stamps[rows])


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

    def select(self, rows: torch.Tensor) -> LayerRows:
        """Those of the given rows, in their order."""
        rows = rows.to(self.keys.device)
        mask = None if self.mask is None else self.mask[rows]
        return LayerRows(self.keys[rows], self.values[rows], mask)


@dataclass(frozen=True)
class StateRows:
    """The stored states that one layer reads, copied together.

    Attributes:
        states: `[batch, read, hidden]`.
        mask: `[batch, read]` bool, True where a token may be read.
        passages: `[batch, read]` int64 number of the passage that each is of.
    """

    states: torch.Tensor
    mask: torch.Tensor
    passages: torch.Tensor

    def select(self, rows: torch.Tensor) -> StateRows:
        """Those of the given rows, in their order."""
        rows = rows.to(self.mask.device)
        return StateRows(self.states[rows], self.mask[rows], self.passages[rows])

    @cached_property
    @lasting()
    def floor(self) -> torch.Tensor:
        """`[batch]` float32, the best fit where nothing fits; see `expected_best`."""
        return expected_best(self.states, self.mask)


def in_blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """`[rows, heads, tokens, dim]` to `[rows * blocks, heads, size, dim]`.

    Behind the last token stands what a block needs to be whole: -1 for numbers, 0 otherwise.
    """
    rows, heads, tokens, dim = x.shape
    x = F.pad(x, (0, 0, 0, -tokens % size), value=0.0 if x.is_floating_point() else -1)
    x = x.view(rows, heads, -1, size, dim).transpose(1, 2)
    return x.reshape(-1, heads, size, dim)
