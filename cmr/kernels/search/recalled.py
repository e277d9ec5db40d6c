"""The tokens of chosen blocks: what they are, and which of them are read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain


class Used(NamedTuple):
    """Where it is counted that blocks were recalled.

    Attributes:
        access_count: [N] int64, how often each block was; counted on in place.
        last_access: [N] int64, when it last was; changed in place, and never falls.
        clock: what is written there now.
    """

    access_count: torch.Tensor
    last_access: torch.Tensor
    clock: int


class Sure(NamedTuple):
    """What the bias of a row is made of: nothing up to `low`, `most` from `high` on.

    Attributes:
        certainty: [B] float32 of the rows.
        low: a certainty.
        high: another one, above `low`.
        most: the largest bias.
    """

    certainty: torch.Tensor
    low: float
    high: float
    most: float


class Recalled(NamedTuple):
    """Tokens of a table of blocks, one behind the other.

    Attributes:
        mask: [B, E * block] bool, True where there is a token within what is read.
        read: the same shape, bool: those of them that are not blank.
        token_ids: the same shape, int64, 0 where the mask is False.
        positions: the same shape, int64, -1 where it is.
        bias: [B] float32, added to the logits of what a row reads.
    """

    mask: torch.Tensor
    read: torch.Tensor
    token_ids: torch.Tensor
    positions: torch.Tensor
    bias: torch.Tensor


def recalled(
    table: torch.Tensor,
    within: torch.Tensor | None,
    positions: torch.Tensor,
    token_ids: torch.Tensor,
    index: torch.Tensor | None,
    used: Used,
    sure: Sure,
) -> Recalled:
    """Which tokens of some blocks are read and how strongly, and that they were. One launch.

    Args:
        table: [B, E] int64 slots, -1 for none.
        within: [B, m, 2] int64, first and last positions of what is read of a row: a token is where
            it lies in one of them. None: all are.
        positions: [N, block] int64, N above 0; -1 where no token is stored.
        token_ids: [N, block] int64.
        index: [M, block, H] of the first slots, all of the table's among them, of any
            floating-point dtype; a token whose vector is all 0 is blank. None: none is.
        used: where each block of the table is counted, as often as it stands there.
        sure: what the bias is made of.

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
        ("access_count", used.access_count, "N", whole, CONTIGUOUS),
        ("last_access", used.last_access, "N", whole, CONTIGUOUS),
        ("certainty", sure.certainty, "B", torch.float32),
        two=2,
    )
    if not sure.high > sure.low:
        raise ValueError(f"high: a certainty above low={sure.low} expected, got {sure.high}")
    shape = sizes["B"], sizes["E"] * sizes["block"]
    mask, read = (table.new_empty(shape, dtype=torch.bool) for _ in range(2))
    bias = torch.zeros_like(sure.certainty) if not shape[1] else torch.empty_like(sure.certainty)
    out = Recalled(mask, read, table.new_empty(shape), table.new_empty(shape), bias)
    run: Any = recalled_plain if runs_plain(table, index) else recalled_
    run(table, within, positions, token_ids, index, *used, *sure, *out)
    return out


def recalled_plain(*given: Any) -> None:
    """The specification of `recalled`, of the operation's arguments, checked before."""
    table, within, positions, token_ids, index = given[:5]
    used, sure, out = Used(*given[5:8]), Sure(*given[8:12]), Recalled(*given[12:])
    at = table.clamp(min=0)
    # Entries below 0 add nothing, at slot 0: to leave them out would ask the device.
    times = (table >= 0).to(torch.int64).flatten()
    used.access_count.index_add_(0, at.flatten(), times)
    used.last_access.scatter_reduce_(0, at.flatten(), times * used.clock, "amax")
    if table.shape[1]:
        share = (sure.certainty - sure.low) / (sure.high - sure.low)
        out.bias.copy_(sure.most * share.clamp(0.0, 1.0))
    stored = positions[at]
    # Slots of nobody are cut off by the table, empty places of a block by their position.
    wanted = (stored >= 0) & (table >= 0)[..., None]
    if within is not None:
        first, last = within[:, None, None].unbind(-1)
        wanted &= ((stored[..., None] >= first) & (stored[..., None] <= last)).any(-1)
    out.mask.copy_(wanted.flatten(1))
    # Where the table names no block, slot 0 was looked up: nothing of it may stay.
    out.token_ids.copy_(token_ids[at].flatten(1).masked_fill_(~out.mask, 0))
    out.positions.copy_(stored.flatten(1).masked_fill_(~out.mask, -1))
    if index is not None:
        wanted &= (index[at.flatten()] != 0).any(-1).view(wanted.shape)
    out.read.copy_(wanted.flatten(1))


recalled_ = register(
    "recalled(Tensor table, Tensor? within, Tensor positions, Tensor token_ids, Tensor? index, "
    "Tensor(a!) access_count, Tensor(b!) last_access, int clock, Tensor certainty, float low, "
    "float high, float most, Tensor(c!) mask, Tensor(d!) read, Tensor(e!) ids, "
    "Tensor(f!) places, Tensor(g!) bias) -> ()",
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
    out = torch.empty_like(positions, memory_format=torch.contiguous_format)
    run = without_unread_plain if runs_plain(positions) else without_unread_
    run(positions, table, read, out)
    return out


def without_unread_plain(
    positions: torch.Tensor, table: torch.Tensor, read: torch.Tensor, out: torch.Tensor
) -> None:
    """The specification of `without_unread`, of arguments that were checked already."""
    slots, size = table.clamp(min=0).flatten(), out.shape[1]
    there = (table >= 0).flatten()[:, None].expand(-1, size).to(out)
    held, used = torch.zeros_like(out), torch.zeros_like(out)
    held.index_add_(0, slots, there)
    used.index_add_(0, slots, there * read.reshape(-1, size))
    out.copy_(positions.masked_fill((held > 0) & (used == 0), -1))


without_unread_ = register(
    "without_unread(Tensor positions, Tensor table, Tensor read, Tensor(a!) out) -> ()",
    without_unread_plain,
    "search.recalled:without_unread",
    "cmr.retrieve",
)
