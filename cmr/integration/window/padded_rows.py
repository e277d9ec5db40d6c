"""What leaves a window when the rows of its batch are padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Leave:
    """What leaves the rows of a padded batch at once.

    Attributes:
        going: tokens behind the sinks that leave each row.
        dropped: columns that no row needs any more.
        columns: `[batch, n]` where each row's leaving tokens are, the sinks before them where the
            whole text is wanted; what a row has fewer than `n` is filled with others.
        sinks: `[batch, sinks]` where each row's sinks are.
        places: `[batch, sinks]` where they are afterwards.
        moved: `[batch, 1, 1, 1]` bool, rows of which something leaves.
        new: the same, those of which nothing left before.
        begin: `[batch]` int64, column, in all that were seen, in front of which nothing of the row
            is held; 0 where nothing has left it.
    """

    going: list[int]
    dropped: int
    columns: torch.Tensor
    sinks: torch.Tensor
    places: torch.Tensor
    moved: torch.Tensor
    new: torch.Tensor
    begin: torch.Tensor


class PaddedRows:
    """Each row's own length: a block leaves a row when it would leave that row alone.

    Padding is no text, so a short row fills its window later than a long one beside it. What the
    rows hold stands at the right end of the columns they share. A row's positions count its
    padding, as the model's own do; only how much it holds is its own. See `LocalWindow` for what
    the arguments say.
    """

    def __init__(
        self, padding: Sequence[int], sinks: int, most: int, block: int, whole: bool
    ) -> None:
        self._padding, self._sinks, self._whole = tuple(padding), sinks, whole
        self._most, self._block = most, block
        self._last: tuple[object, Leave | None] = (None, None)

    def select(self, rows: list[int]) -> PaddedRows:
        """These rows, in this order."""
        padding = [self._padding[row] for row in rows]
        return PaddedRows(padding, self._sinks, self._most, self._block, self._whole)

    def leave(
        self, device: torch.device, held: int, seen: int, gone: tuple[int, ...]
    ) -> Leave | None:
        """What leaves the rows, with its tensors on a device; None where nothing does.

        `held` columns of those `seen` in all are there, and `gone` tokens of each row left before.
        """
        # The layers ask one after the other, and the numbers are all on the host: one of them pays.
        key = device, held, seen, gone
        if key != self._last[0]:
            found = self._leaving(held, seen, gone)
            if found is not None:
                tensors = {n: x for n, x in vars(found).items() if isinstance(x, torch.Tensor)}
                there: dict[str, Any] = {n: x.to(device) for n, x in tensors.items()}
                found = replace(found, **there)
            self._last = key, found
        return self._last[1]

    def _leaving(self, held: int, seen: int, gone: tuple[int, ...]) -> Leave | None:
        empty, block = self._empty(held, seen, gone), self._block
        over = [max(0, held - first - self._most) for first in empty]
        going = [-(-n // block) * block for n in over]
        if not any(going):
            return None
        kept = max(held - first - n for first, n in zip(empty, going, strict=True))
        # Sinks go along with the first tokens that leave a row, where they become memory.
        along = [self._sinks if self._whole and not n else 0 for n in gone]
        count = [n + extra if n else 0 for n, extra in zip(going, along, strict=True)]
        at = [n + self._sinks - extra for n, extra in zip(empty, along, strict=True)]
        first, now, before = torch.tensor(empty), torch.tensor(going), torch.tensor(gone)
        after, moved = before + now, (now > 0)[:, None, None, None]
        return Leave(
            going=going,
            dropped=held - kept,
            columns=columns_from(torch.tensor(at), max(count), held),
            sinks=columns_from(first, self._sinks, held),
            places=columns_from(first + now - (held - kept), self._sinks, kept),
            moved=moved,
            new=moved & (before == 0)[:, None, None, None],
            begin=torch.where(after > 0, torch.tensor(self._padding) + after, 0),
        )

    def _empty(self, held: int, seen: int, gone: tuple[int, ...]) -> list[int]:
        """Columns of each row, of those held, that stand before all that it holds."""
        return [n + left - (seen - held) for n, left in zip(self._padding, gone, strict=True)]

    def croppable(self, held: int, seen: int, gone: tuple[int, ...]) -> int:
        """Tokens that can be taken back from every row."""
        empty = self._empty(held, seen, gone)
        behind = [held - n - self._sinks for n, left in zip(empty, gone, strict=True) if left]
        return min([held, *behind])


def columns_from(first: torch.Tensor, count: int, held: int) -> torch.Tensor:
    """Columns `[batch, count]` from each row's first on, none of them outside of those held."""
    return (first[:, None] + torch.arange(count, device=first.device)).clamp(0, held - 1)


def pick(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Columns `[batch, n]` of `[batch, heads, tokens, dim]`."""
    return x.gather(2, columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))


def put(
    x: torch.Tensor, columns: torch.Tensor, new: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """`[batch, heads, tokens, dim]` with `new` in the columns `[batch, n]` of some rows."""
    new = torch.where(rows, new, pick(x, columns))
    return x.scatter(2, columns[:, None, :, None].expand_as(new), new)
