"""A saved memory looked at and changed without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from cmr.memory.inspection import StoredBlock
from cmr.memory.store import Saved, SaveReport

Decode = Callable[[list[int]], str]


def stored_blocks(saved: Saved, decode: Decode | None) -> list[StoredBlock]:
    """What a saved memory holds, in the order of its blocks.

    Args:
        saved: the opened memory.
        decode: text of token ids; None: no texts.
    """
    names = {int(entry["number"]): str(entry["name"]) for entry in saved.header["sessions"]}
    tiers = [name for name, _ in saved.header["tiers"]]
    columns = saved.columns
    return [
        stored_block(
            int(saved.numbers[i]),
            names[int(saved.session[i])],
            tiers[int(columns["tier"][i])],
            columns["positions"][i],
            columns["token_ids"][i],
            float(columns["relevance"][i]),
            int(columns["access_count"][i]),
            int(columns["last_access"][i]),
            float(columns["time"][i]),
            float(columns["deadline"][i]),
            bool(columns["flags"][i]),
            decode,
        )
        for i in range(len(saved))
    ]


def stored_block(
    number: int,
    session: str,
    tier: str,
    positions: torch.Tensor,
    token_ids: torch.Tensor,
    relevance: float,
    access_count: int,
    last_access: int,
    born: float,
    deadline: float,
    pinned: bool,
    decode: Decode | None,
) -> StoredBlock:
    """One row for people, from columns as they are stored (`positions` and ids `[block]`)."""
    held = positions >= 0
    ids = token_ids[held].tolist()
    return StoredBlock(
        id=number,
        session=session,
        tier=tier,
        start=int(positions[held].min()),
        end=int(positions[held].max()) + 1,
        relevance=relevance,
        access_count=access_count,
        last_access=last_access,
        born=born,
        expires=None if math.isinf(deadline) else deadline,
        pinned=pinned,
        token_ids=tuple(ids),
        text=None if decode is None else decode(ids),
    )


def of_sessions(saved: Saved, names: Sequence[str]) -> torch.Tensor:
    """Which blocks belong to sessions of these names, `[n]` bool."""
    numbers = [int(e["number"]) for e in saved.header["sessions"] if e["name"] in names]
    return torch.isin(saved.session, torch.tensor(numbers, dtype=torch.int64))


def names_of(saved: Saved, numbers: torch.Tensor) -> list[str]:
    """Names of the sessions that have these numbers there."""
    wanted = set(numbers.tolist())
    return [str(e["name"]) for e in saved.header["sessions"] if int(e["number"]) in wanted]


def forget(saved: Saved, gone: torch.Tensor, sessions: Sequence[str] = ()) -> SaveReport:
    """Write a saved memory anew without some blocks; what was there is overwritten with zeros.

    Args:
        saved: the opened memory.
        gone: `[n]` bool, the blocks to forget.
        sessions: names to forget with them.
    """
    kept = [entry for entry in saved.header["sessions"] if entry["name"] not in sessions]
    return saved.forget(gone.nonzero()[:, 0], {**saved.header, "sessions": kept})
