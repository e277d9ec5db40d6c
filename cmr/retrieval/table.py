"""The block table: which slots a choice of passages reads."""

from __future__ import annotations

import torch

from cmr.memory.ring import NO_SLOT


def block_table(
    starts: torch.Tensor,
    successor: torch.Tensor,
    predecessor: torch.Tensor,
    *,
    length: int,
    neighbours: int,
) -> torch.Tensor:
    """Slots of each chosen passage and its neighbours, every slot at most once a row.

    Args:
        starts: `[batch, passages]` int64, first slot of each passage, -1 for none.
        successor: `[slots]` int64, the slot of the session's next block, or -1.
        predecessor: `[slots]` int64, of the one before.
        length: blocks in a passage.
        neighbours: blocks read in addition on each side.

    Returns:
        `[batch, passages, neighbours + length + neighbours]` int64 slots in the order of the
        text; -1 where the text begins or ends or where an earlier passage has the block already.
    """
    run = [starts]
    for _ in range(neighbours):
        run.insert(0, _follow(predecessor, run[0]))
    for _ in range(length - 1 + neighbours):
        run.append(_follow(successor, run[-1]))
    table = torch.stack(run, dim=-1)
    rows, passages, width = table.shape
    flat = table.view(rows, passages * width)
    same = (flat[:, :, None] == flat[:, None, :]) & (flat[:, :, None] >= 0)
    earlier = torch.ones_like(same[0]).tril(-1)
    seen = (same & earlier).any(dim=-1)
    return flat.masked_fill(seen, NO_SLOT).view(rows, passages, width)


def _follow(links: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The linked slot, -1 where there is none."""
    linked = links[slots.clamp(min=0)]
    return torch.where(slots >= 0, linked, NO_SLOT)
