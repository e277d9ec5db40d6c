"""Reading blocks of the ring through a table of slots."""

from __future__ import annotations

import torch


def readable(
    table: torch.Tensor, stamps: torch.Tensor, created: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Which tokens [B, M * block] bool of a table's blocks may be read.

    Of a table [B, M] with -1 for none, by its stamps [B, M], `created` [slots] of at least one slot
    and `positions` [slots, block], below 0 where there is no token; see `reweave_paged`.
    """
    batch, entries = table.shape
    slots = table.clamp(min=0).view(-1)
    # The number that a slot's block had when it was chosen: another one means other text by now.
    fresh = (table >= 0) & (created.index_select(0, slots).view(batch, entries) == stamps)
    seen = positions.index_select(0, slots).view(batch, entries, -1) >= 0
    return (seen & fresh.unsqueeze(-1)).view(batch, -1)


def gather(
    stores: tuple[torch.Tensor, ...], table: torch.Tensor, columns: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """The blocks of a table [B, M], head by head: [B, G, M * block, D] of each store.

    A store is [slots, G, block, D]. A slot below 0 reads slot 0 and has to be masked. By `columns`
    [N], and B = 1, only those of the M * block tokens: [1, G, N, D].
    """
    batch, entries = table.shape
    slots, groups, block, _ = stores[0].shape
    # Slot 0 stands in for none, as a gather needs a slot; the mask hides what comes of it.
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
