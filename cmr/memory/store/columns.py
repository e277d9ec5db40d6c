"""The columns of a saved memory, read and checked, and which row of which file each block is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cmr.memory.store.datafile import DataFile, check_sum
from cmr.memory.store.folder import Folder
from cmr.memory.store.form import corrupt
from cmr.memory.store.manifest import DEAD, Manifest

COLUMN = "column."


def read_columns(folder: Folder, found: Manifest) -> dict[str, torch.Tensor]:
    """All columns, checked for checksum and form, in memory of their own."""
    about = found.columns
    path = folder.file(about.file)
    check_sum(path, about.bytes, about.sha256)
    out = {}
    with DataFile(path, about.bytes, found.vault) as file:
        spans = file.spans(about.parts, about.rows)
        buffer = file.buffer([(0, file.size)])
        for name, span in spans.items():
            if span.dtype == torch.bool:
                # Looked at as numbers first: what torch makes of another byte is undefined.
                given = span._replace(dtype=torch.uint8).view(buffer, 0, about.rows)
                if given.numel() and int(given.max()) > 1:
                    corrupt(f"{path}, tensor {name!r}", "booleans of 0 or 1 expected")
            out[name] = span.view(buffer, 0, about.rows).clone()
    for name, (dtype, value) in about.fill.items():
        if name in out:
            corrupt(folder.manifest, f"column {name!r} is both in a file and filled")
        out[name] = torch.full((about.rows,), value, dtype=dtype)
    for name in ("kind", "numbers", "session"):
        if name not in out:
            corrupt(folder.manifest, f"a column {name!r} expected, got none")
        if out[name].dtype != torch.int64 or out[name].ndim != 1:
            corrupt(folder.manifest, f"column {name!r}: int64, one a block, expected")
    for name in out:
        if name not in ("kind", "numbers", "session") and not name.startswith(COLUMN):
            corrupt(folder.manifest, f"a column called {COLUMN}... expected, got {name[:80]!r}")
    return out


def places_of(
    found: Manifest, columns: Mapping[str, torch.Tensor], folder: Folder
) -> list[torch.Tensor]:
    """For each data file the position of each row's block, -1 for rows that are not used.

    Each block must have exactly one row, in a file of its kind.
    """
    numbers, kind = columns["numbers"], columns["kind"]
    order = numbers.argsort()
    known = numbers[order]
    if len(known) and int(known[0]) < 0:
        corrupt(folder.manifest, "block numbers from 0 on expected")
    if bool((known[1:] == known[:-1]).any()):
        corrupt(folder.manifest, "different block numbers expected, got one twice")
    seen = torch.zeros(len(numbers), dtype=torch.int64)
    places = []
    for shard in found.shards:
        rows = torch.tensor(shard.numbers, dtype=torch.int64)
        used = rows >= 0
        place = torch.full_like(rows, DEAD)
        if len(known):
            near = torch.searchsorted(known, rows).clamp(max=len(known) - 1)
            place[used] = order[near[used]]
        elif bool(used.any()):
            corrupt(folder.manifest, f"{shard.file}: has blocks that the columns do not name")
        held = place[used]
        if not torch.equal(numbers[held], rows[used]):
            corrupt(folder.manifest, f"{shard.file}: has blocks that the columns do not name")
        if not bool((kind[held] == shard.kind).all()):
            corrupt(folder.manifest, f"{shard.file}: has blocks of another kind")
        seen.index_add_(0, held, torch.ones_like(held))
        places.append(place)
    if not bool((seen == 1).all()):
        corrupt(folder.manifest, f"a row for each of {len(seen)} blocks expected, got another set")
    return places
