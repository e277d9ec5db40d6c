"""Each session's own blocks, where a comparison need not look at all: on a CPU."""

from __future__ import annotations

import torch

WORTH = 4
"""Rows are looked at in part where there are so many times the blocks that one of them sees."""


def own_blocks(
    session: torch.Tensor, sessions: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rows `[r]` and the blocks `[n]` of each session that asks, int64.

    Of the `session` [N] of each block and the `sessions` [B] of the rows. Waits for a device.
    """
    numbers = sessions.unique()
    rows, own = (places(numbers, of) for of in (sessions, session))
    return list(zip(rows, own, strict=True))


def places(numbers: torch.Tensor, of: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where each of some numbers [S] stands in `of` [N]: places [n] in rising order, int64."""
    which, at = (of == numbers[:, None]).nonzero().unbind(1)
    return at.split(which.bincount(minlength=len(numbers)).tolist())


def put(out: torch.Tensor, rows: torch.Tensor, own: torch.Tensor, found: torch.Tensor) -> None:
    """Write what was found [r, Q, n] to these rows and blocks of `out` [B, Q, N]."""
    out[rows[:, None, None], torch.arange(out.shape[1])[:, None], own] = found


def blocks_at(
    at: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None,
    scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What is stored of the blocks `at` [n]: parts of tensors [N, ...], None of None."""
    given = index, token_mask, scale
    # What was stored together mostly lies together: on a CPU it need not be copied then.
    if at.device.type == "cpu" and len(at) and bool((at.diff() == 1).all()):
        where = slice(int(at[0]), int(at[-1]) + 1)
        return tuple(None if part is None else part[where] for part in given)  # type: ignore[return-value]
    return tuple(None if part is None else part.index_select(0, at) for part in given)  # type: ignore[return-value]


def most_seen(seen: torch.Tensor) -> int | None:
    """How many blocks a row of `seen` [B, N] bool sees at most, where that is few of them.

    None where looking at all blocks of all rows is as good, as elsewhere than on a CPU.
    """
    if seen.device.type != "cpu" or len(seen) < 2:
        return None
    most = int(seen.sum(-1).max())
    return most if WORTH * most <= seen.shape[1] else None


def seen_first(seen: torch.Tensor) -> torch.Tensor | None:
    """Blocks [B, n] of each row, those that it sees first, where it sees few: see `most_seen`."""
    most = most_seen(seen)
    if most is None:
        return None
    return seen.byte().argsort(dim=1, descending=True, stable=True)[:, :most]


def beginnings(visible: torch.Tensor, successor: torch.Tensor) -> torch.Tensor:
    """The blocks [B, N] that are visible, or the next one is: where a passage of two begins."""
    return visible | (visible[:, successor.clamp(min=0)] & (successor >= 0))
