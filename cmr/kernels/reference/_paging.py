"""Reading blocks of the ring through a table of slots."""

from __future__ import annotations

import torch


def readable(
    table: torch.Tensor, stamps: torch.Tensor, created: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Which tokens of a table's blocks may be read.

    Args:
        table: [B, M] int64 slots, -1: none.
        stamps: [B, M] int64, what `created` of the slot was when it was chosen. A slot that was
            given to another block since is not read.
        created: [slots] int64, at least one slot.
        positions: [slots, block] int64, below 0 where there is no token.

    Returns:
        [B, M * block] bool.
    """
    batch, entries = table.shape
    slots = table.clamp(min=0).view(-1)
    fresh = (table >= 0) & (created.index_select(0, slots).view(batch, entries) == stamps)
    seen = positions.index_select(0, slots).view(batch, entries, -1) >= 0
    return (seen & fresh.unsqueeze(-1)).view(batch, -1)


def gather(
    stores: tuple[torch.Tensor, ...], table: torch.Tensor, columns: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """The blocks of a table, head by head.

    Args:
        stores: [slots, G, block, D] each.
        table: [B, M] int64 slots; below 0 reads slot 0 and has to be masked.
        columns: [N] int64, with B = 1: which of the M * block tokens are wanted; None: all.

    Returns:
        [B, G, M * block, D] each, or [1, G, N, D].
    """
    batch, entries = table.shape
    slots, groups, block, _ = stores[0].shape
    first = table.clamp(min=0)
    if not all(store.is_contiguous() for store in stores):
        picked = (store.index_select(0, first.view(-1)) for store in stores)
        found = [
            x.view(batch, entries, groups, block, -1).transpose(1, 2).flatten(2, 3) for x in picked
        ]
        return found if columns is None else [x.index_select(2, columns) for x in found]
    # Rows of (slot, head) or (slot, head, token): the copy comes out in the wanted order.
    heads = torch.arange(groups, device=table.device).unsqueeze(1)
    if columns is None:
        rows, unit = first.unsqueeze(1) * groups + heads, slots * groups
    else:
        tokens = first[0, columns // block] * (groups * block) + columns % block
        rows, unit = tokens + heads * block, slots * groups * block
    return [
        store.view(unit, -1).index_select(0, rows.view(-1)).view(batch, groups, -1, store.shape[-1])
        for store in stores
    ]
