"""`ReadPlan`: which recalled tokens go into which read token, and with what share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cmr.kernels.reference.attention import wide


@dataclass(frozen=True)
class ReadPlan:
    """Fewer tokens out of many: each read token is a weighted sum of recalled ones, or just one.

    One plan serves every layer, for keys, values and states alike. `members` `[batch, read, width]`
    int64 are the columns of the recalled tokens that go into each read token, in the order of the
    text and -1 behind the last one; a token goes into one at most. `shares` of the same shape,
    float32, sum to 1 in a read token.
    """

    members: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(cls, slots: Sequence[torch.Tensor], shares: Sequence[torch.Tensor]) -> ReadPlan:
        """The plan of rows of which each says where its tokens go, `[n]` slots and shares.

        Slots number read tokens from 0 without gaps, -1 is none; shares are at least 0, and not all
        0 in a read token.
        """
        parts = [_members(slot, share) for slot, share in zip(slots, shares, strict=True)]
        read = max((len(columns) for columns, _ in parts), default=0)
        width = max((columns.shape[1] for columns, _ in parts), default=1)
        members = torch.full((len(parts), read, width), -1)
        weights = torch.zeros(len(parts), read, width)
        for row, (columns, weight) in enumerate(parts):
            members[row, : len(columns), : columns.shape[1]] = columns
            weights[row, : len(columns), : columns.shape[1]] = weight
        return cls(members, weights)

    @property
    def mask(self) -> torch.Tensor:
        """`[batch, read]` bool, True where there is a token to read."""
        return self.members[..., 0] >= 0

    def to(self, device: torch.device) -> ReadPlan:
        """The same on a device."""
        return ReadPlan(self.members.to(device), self.shares.to(device))

    def select(self, rows: torch.Tensor) -> ReadPlan:
        """The plan of some rows, in their order."""
        rows = rows.to(self.members.device)
        return ReadPlan(self.members[rows], self.shares[rows])

    def apply(self, states: torch.Tensor) -> torch.Tensor:
        """What is read of recalled `[batch, heads, n, dim]`: `[batch, heads, read, dim]`.

        The dtype stays, sums are formed in float32, and a token that is read alone comes bit for
        bit; 0 where there is no token. Tokens that go nowhere may hold NaN.
        """
        batch, heads, _, dim = states.shape
        read, width = self.members.shape[1:]
        at = self.members.clamp(min=0).view(batch, 1, read * width, 1)
        found = states.gather(2, at.expand(-1, heads, -1, dim))
        found = found.view(batch, heads, read, width, dim)
        # Filled before the sum: a share of 0 would not hide a NaN.
        found = found.masked_fill((self.members < 0)[:, None, ..., None], 0.0)
        if width == 1:  # no sums: what is read alone keeps its bits
            return found[..., 0, :]
        share = self.shares[:, None, ..., None]
        return (wide(found) * share).sum(3).to(states.dtype)

    def places(self, positions: torch.Tensor) -> torch.Tensor:
        """The rounded centre of what goes into each read token, `[batch, read]`; -1 for no token.

        `positions` are `[batch, n]` int64, on the plan's device.
        """
        batch, read, width = self.members.shape
        at = positions.gather(1, self.members.clamp(min=0).view(batch, -1)).view(batch, read, width)
        # In float64: positions of a long text are beyond what float32 counts exactly.
        centre = (at.double() * self.shares).sum(-1).round().long()
        return torch.where(self.mask, centre, -1)

    def used(self, tokens: int) -> torch.Tensor:
        """Which of the `tokens` recalled ones go into anything, `[batch, tokens]` bool."""
        batch = len(self.members)
        # The column behind the last takes what the -1 of shorter groups would hit.
        seen = torch.zeros(batch, tokens + 1, dtype=torch.bool, device=self.members.device)
        seen.scatter_(1, torch.where(self.members >= 0, self.members, tokens).view(batch, -1), True)
        return seen[:, :tokens]

    def counts(self, parts: torch.Tensor, number: int) -> torch.Tensor:
        """How many read tokens come of each part of what was recalled, `[batch, number]` int64.

        `parts` `[n]` says the part, 0 to `number - 1`, that each recalled token is in.
        """
        # A read token that is made of several counts where its first one is.
        first = self.members[..., 0]
        part = torch.where(first >= 0, parts[first.clamp(min=0)], number)
        found = torch.zeros(len(first), number + 1, dtype=torch.int64, device=first.device)
        return found.scatter_add_(1, part, torch.ones_like(part))[:, :number]


def _members(slot: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns and shares `[read, width]` of one row; -1 and 0 behind the last of each."""
    columns = (slot >= 0).nonzero()[:, 0]
    into = slot[columns]
    order = into.argsort(stable=True)
    columns, into = columns[order], into[order]
    sizes = torch.bincount(into) if len(into) else torch.zeros(0, dtype=torch.int64)
    assert bool((sizes > 0).all()), "read tokens are numbered without gaps"
    within = torch.arange(len(into)) - (sizes.cumsum(0) - sizes)[into]
    width = int(sizes.max()) if len(sizes) else 1
    members = torch.full((len(sizes), width), -1)
    weights = torch.zeros(len(sizes), width)
    members[into, within] = columns
    weights[into, within] = share[columns].float()
    return members, weights / weights.sum(-1, keepdim=True)
