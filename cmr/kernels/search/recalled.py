"""The tokens of chosen blocks: what they are, and which of them are read."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain


class Recalled(NamedTuple):
    """Tokens of a table of blocks, one behind the other.

    Attributes:
        mask: [B, E * block] bool, True where there is a token within what is read.
        read: the same shape, bool: those of them that are not blank.
        token_ids: the same shape, int64, 0 where the mask is False.
        positions: the same shape, int64, -1 where it is.
    """

    mask: torch.Tensor
    read: torch.Tensor
    token_ids: torch.Tensor
    positions: torch.Tensor


def recalled(
    table: torch.Tensor,
    within: torch.Tensor | None,
    positions: torch.Tensor,
    token_ids: torch.Tensor,
    index: torch.Tensor | None,
) -> Recalled:
    """Which tokens of some blocks are read. One launch.

    Args:
        table: [B, E] int64 slots, -1 for none.
        within: [B, m, 2] int64, first and last positions of what is read of a row: a token is where
            it lies in one of them. None: all are.
        positions: [N, block] int64, N above 0; -1 where no token is stored.
        token_ids: [N, block] int64.
        index: [M, block, H] of the first slots, all of the table's among them, of any
            floating-point dtype; a token whose vector is all 0 is blank. None: none is.

    Returns:
        A `Recalled`.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Equivalent PyTorch: `recalled_plain`.
    """
    whole = torch.int64
    sizes = expect(
        ("table", table, "B E", whole),
        ("within", within, "B m two", whole),
        ("positions", positions, "N block", whole, CONTIGUOUS),
        ("token_ids", token_ids, "N block", whole, CONTIGUOUS),
        ("index", index, "M block H", None),
        two=2,
    )
    shape = sizes["B"], sizes["E"] * sizes["block"]
    mask, read = (table.new_empty(shape, dtype=torch.bool) for _ in range(2))
    out = Recalled(mask, read, table.new_empty(shape), table.new_empty(shape))
    run = recalled_plain if runs_plain(table, index) else recalled_
    run(table, within, positions, token_ids, index, *out)
    return out


def recalled_plain(
    table: torch.Tensor,
    within: torch.Tensor | None,
    positions: torch.Tensor,
    token_ids: torch.Tensor,
    index: torch.Tensor | None,
    mask: torch.Tensor,
    read: torch.Tensor,
    ids: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """The specification of `recalled`, of arguments that were checked already."""
    at = table.clamp(min=0)
    stored = positions[at]
    # Slots of nobody are cut off by the table, empty places of a block by their position.
    wanted = (stored >= 0) & (table >= 0)[..., None]
    if within is not None:
        first, last = within[:, None, None].unbind(-1)
        wanted &= ((stored[..., None] >= first) & (stored[..., None] <= last)).any(-1)
    mask.copy_(wanted.flatten(1))
    # Where the table names no block, slot 0 was looked up: nothing of it may stay.
    ids.copy_(token_ids[at].flatten(1).masked_fill_(~mask, 0))
    places.copy_(stored.flatten(1).masked_fill_(~mask, -1))
    if index is not None:
        wanted &= (index[at.flatten()] != 0).any(-1).view(wanted.shape)
    read.copy_(wanted.flatten(1))


recalled_ = register(
    "recalled(Tensor table, Tensor? within, Tensor positions, Tensor token_ids, Tensor? index, "
    "Tensor(a!) mask, Tensor(b!) read, Tensor(c!) ids, Tensor(d!) places) -> ()",
    recalled_plain,
    "search.recalled:recalled",
    "cmr.retrieve",
)


def without_unread(
    positions: torch.Tensor, table: torch.Tensor, read: torch.Tensor
) -> torch.Tensor:
    """The positions of a store, -1 for tokens of a table that no row reads. A copy, and one launch.

    Args:
        positions: [N, block] int64.
        table: [B, E] int64 slots, -1 for none.
        read: [B, E * block] bool, which of their tokens are read.

    Returns:
        [N, block] int64. What rows read to different ends is kept as far as one of them reads it.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Equivalent PyTorch: `without_unread_plain`.
    """
    sizes = expect(
        ("positions", positions, "N block", torch.int64),
        ("table", table, "B E", torch.int64),
    )
    tokens = sizes["E"] * sizes["block"]
    expect(("read", read, "B T", torch.bool), B=sizes["B"], T=tokens)
    out = positions.clone(memory_format=torch.contiguous_format)
    (without_unread_plain if runs_plain(positions) else without_unread_)(table, read, out)
    return out


def without_unread_plain(table: torch.Tensor, read: torch.Tensor, out: torch.Tensor) -> None:
    """The specification of `without_unread`, of arguments that were checked already."""
    slots, size = table.clamp(min=0).flatten(), out.shape[1]
    there = (table >= 0).flatten()[:, None].expand(-1, size).to(out)
    held, used = torch.zeros_like(out), torch.zeros_like(out)
    held.index_add_(0, slots, there)
    used.index_add_(0, slots, there * read.reshape(-1, size))
    out.masked_fill_((held > 0) & (used == 0), -1)


without_unread_ = register(
    "without_unread(Tensor table, Tensor read, Tensor(a!) out) -> ()",
    without_unread_plain,
    "search.recalled:without_unread",
    "cmr.retrieve",
)
