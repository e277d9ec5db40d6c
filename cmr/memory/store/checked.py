"""The folder of an attached model's memory: opened, and held to what such a memory saves."""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from cmr.errors import StoreError
from cmr.memory.store.fields import Wrong
from cmr.memory.store.form import Kind, corrupt
from cmr.memory.store.saved import Batch, Saved
from cmr.memory.store.schema import HEADER, MAX_CLOCK, MAX_COUNT, MAX_POSITION
from cmr.memory.store.vault import Key

COLUMNS = {
    "slot": torch.int64,
    "tier": torch.int64,
    "before": torch.int64,
    "token_ids": torch.int32,
    "positions": torch.int64,
    "last_access": torch.int64,
    "access_count": torch.int64,
    "relevance": torch.float32,
    "time": torch.float64,
    "deadline": torch.float64,
    "flags": torch.int64,
}
MAX_TIME = float(1 << 37)
"""Seconds since the epoch, in the year 6325: what calendars can show."""
MAX_UNIT, MAX_STATE = 1.1, 1e9
"""Of what is indexed, which has norm 1, and of keys, values and states, so that sums are finite."""
MAX_DEADLINE = float(1 << 41)
_PART = re.compile(r"index|codes|scale|(keys|values)\.\d{1,4}")


def open_memory(path: str | os.PathLike[str], key: Key | None = None) -> Saved:
    """Open what `Memory.save` saved; all but the checksums of its blocks is checked.

    Header and manifest come first, then the columns, each value for itself and against the header:
    what is refused is a `CorruptMemoryError`, and what else is raised `Saved.open` says.
    """
    saved = Saved.open(path, key=key, header=HEADER)
    for kind in saved.kinds:
        _check_kind(saved, kind)
    _check_forms(saved)
    fits = _ranges(saved)
    if len(saved) and all(fits.values()):
        fits |= _references(saved)
    for name, fit in fits.items():
        if not fit:
            corrupt(saved.path, f"{name!r} holds values out of range")
    return saved


def require_savable(header: dict[str, Any], path: object) -> None:
    """Raises StoreError for a header that `open_memory` would refuse, before anything is saved."""
    try:
        HEADER(header)
    except Wrong as error:
        raise StoreError(f"{path}: this memory cannot be saved: {error}") from None


def check_rows(saved: Saved, batch: Batch) -> None:
    """Raises CorruptMemoryError for blocks with values that no model's states have."""
    for name, part in batch.parts.items():
        most = {"index": MAX_UNIT, "scale": MAX_UNIT}.get(name, MAX_STATE)
        if part.is_floating_point() and part.numel():
            low, high = torch.aminmax(part)
            if not (float(low) >= -most and float(high) <= most):
                corrupt(saved.path, f"{name!r}: finite numbers of at most {most:g} expected")


def _check_kind(saved: Saved, kind: Kind) -> None:
    wrong = [name for name in kind.parts if not _PART.fullmatch(name)]
    if kind.name not in ("full", "codes") or wrong:
        found = wrong[0] if wrong else kind.name
        corrupt(saved.path, f"kinds 'full' and 'codes' of index, keys and values, got {found!r}")


def _check_forms(saved: Saved) -> None:
    """Data types and shapes of all columns; a block has as many ids as it has positions."""
    size = saved.columns["positions"].shape[-1] if "positions" in saved.columns else 0
    if saved.columns.keys() != COLUMNS.keys():
        other = sorted(saved.columns.keys() ^ COLUMNS.keys())
        corrupt(saved.path, f"columns {', '.join(COLUMNS)} expected, missing or unknown: {other}")
    for name, dtype in COLUMNS.items():
        column = saved.columns[name]
        shape = (len(saved), *([size] if name in ("token_ids", "positions") else []))
        if column.dtype != dtype or tuple(column.shape) != shape:
            got = f"{list(column.shape)} {column.dtype}"
            corrupt(saved.path, f"column {name!r} {list(shape)} {dtype} expected, got {got}")


def _ranges(saved: Saved) -> dict[str, bool]:
    """Whether each column holds nothing but what it may hold, whatever the others do."""
    columns, header = saved.columns, saved.header
    clock = header["clock"]
    limits = {
        "slot": (0, header["limit"] - 1),
        "tier": (0, len(header["tiers"]) - 1),
        "before": (-1, clock),
        "token_ids": (0, (1 << 31) - 1),
        "positions": (-1, MAX_POSITION - 1),
        "last_access": (0, clock),
        "access_count": (0, MAX_COUNT),
        "relevance": (0, 1),
        "time": (0, MAX_TIME),
        "flags": (0, 1),
    }
    found = {name: _within(columns[name], *limit) for name, limit in limits.items()}
    due = columns["deadline"]
    found["deadline"] = _within(torch.where(due == torch.inf, 0, due), 0, MAX_DEADLINE)
    found["clock"] = clock <= MAX_CLOCK and _within(saved.numbers, 1, clock)
    return found


def _references(saved: Saved) -> dict[str, bool]:
    """Whether the columns go together, and with the header."""
    columns, tiers = saved.columns, saved.header["tiers"]
    slots = torch.tensor([slots for _, slots in tiers])
    tier, slot = columns["tier"], columns["slot"]
    last = slots.cumsum(0)[tier]
    # What lies in the last tier is reduced to codes, and nothing else is.
    reduced = torch.tensor([name == "long_term" for name, _ in tiers])[tier]
    codes = torch.tensor([kind.name == "codes" for kind in saved.kinds])[saved.kind]
    entries = saved.header["sessions"]
    known = torch.tensor([entry["number"] for entry in entries], dtype=torch.int64)
    ends = torch.tensor([entry["position"] for entry in entries], dtype=torch.int64)
    known, order = known.sort()
    at = torch.searchsorted(known, saved.session).clamp(max=max(len(known) - 1, 0))
    owned = len(known) > 0 and bool((known[at] == saved.session).all())
    newest = columns["positions"].amax(1)
    return {
        "slot": bool(((slot >= last - slots[tier]) & (slot < last)).all())
        and len(slot.unique()) == len(slot),
        "tier": torch.equal(reduced, codes),
        "session": owned,
        # A block has a token, and a session's text goes on behind its last one.
        "positions": not owned or bool(((newest >= 0) & (newest < ends[order][at])).all()),
        "before": _chains_fit(saved),
        "last": _ends_fit(saved),
    }


def _chains_fit(saved: Saved) -> bool:
    """Whether blocks follow older ones of their own session, and none follows two."""
    numbers, order = saved.numbers.sort()
    before = saved.columns["before"]
    at = torch.searchsorted(numbers, before).clamp(max=len(numbers) - 1)
    there = numbers[at] == before
    ahead = order[at[there]]
    return (
        len(ahead.unique()) == len(ahead)
        and bool((before[there] < saved.numbers[there]).all())
        and torch.equal(saved.session[ahead], saved.session[there])
    )


def _ends_fit(saved: Saved) -> bool:
    """Whether what a session's text goes on behind is its own, and nothing follows it yet."""
    owner = dict(zip(saved.numbers.tolist(), saved.session.tolist(), strict=True))
    followed = set(saved.columns["before"].tolist())
    return all(
        last not in owner or (owner[last] == entry["number"] and last not in followed)
        for entry in saved.header["sessions"]
        if (last := entry["last"])
    )


def _within(column: torch.Tensor, low: float, high: float) -> bool:
    # NaN is in no range: every comparison with it is false.
    return bool(((column >= low) & (column <= high)).all())
