"""A saved memory looked at and changed without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmr.memory.inspection import Decode, StoredBlock, blocks_from
from cmr.memory.store import Saved, SaveReport


def stored_blocks(saved: Saved, decode: Decode | None) -> list[StoredBlock]:
    """What a saved memory holds, in the order of its blocks; `decode` None: without texts."""
    # Sessions and tiers are numbers in the columns; the header has their names.
    names = {entry["number"]: entry["name"] for entry in saved.header["sessions"]}
    tiers = [name for name, _ in saved.header["tiers"]]
    owners = [names[number] for number in saved.session.tolist()]
    return blocks_from(saved.columns, saved.numbers, owners, tiers, decode)


def of_sessions(saved: Saved, names: Sequence[str]) -> torch.Tensor:
    """Which blocks belong to sessions of these names, `[n]` bool."""
    numbers = [e["number"] for e in saved.header["sessions"] if e["name"] in names]
    return torch.isin(saved.session, torch.tensor(numbers, dtype=torch.int64))


def forget(saved: Saved, gone: torch.Tensor, sessions: Sequence[str] = ()) -> SaveReport:
    """Write a saved memory anew without blocks (`[n]` bool) and names of sessions.

    What was there is overwritten with zeros.
    """
    kept = [entry for entry in saved.header["sessions"] if entry["name"] not in sessions]
    return saved.forget(gone.nonzero()[:, 0], {**saved.header, "sessions": kept})
