"""Older formats: each version's manifest is turned into the next one's, in memory only.

A folder keeps the version that it was saved with until it is saved again. A new version adds one
function here; the steps before it stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cmr.memory.store.text import corrupt, take

VERSION = 2

# Columns that version 1 did not have, with the value that its blocks get.
ADDED_IN_2: dict[str, tuple[str, int | float]] = {
    "kind": ("I64", 0),
    "column.time": ("F64", 0.0),
    "column.flags": ("I64", 0),
    "column.tier": ("I64", 0),
}


def _from_1(table: dict[str, Any], where: object) -> dict[str, Any]:
    """Version 1 had one kind, whose parts stood at the top, and fewer columns."""
    if "kinds" in table:
        corrupt(where, "'kinds' in a manifest of version 1")
    table["kinds"] = [{"name": "full", "parts": take(table, "parts", dict, where)}]
    del table["parts"]
    for shard in take(table, "shards", list, where):
        if not isinstance(shard, dict):
            corrupt(where, f"an object expected in 'shards', got {type(shard).__name__}")
        shard["kind"] = 0
    columns = take(table, "columns", dict, where)
    present = take(columns, "parts", dict, where)
    columns["fill"] = {
        name: {"dtype": dtype, "value": value}
        for name, (dtype, value) in ADDED_IN_2.items()
        if name not in present
    }
    return table


MIGRATIONS: dict[int, Callable[[dict[str, Any], object], dict[str, Any]]] = {1: _from_1}


def migrate(table: dict[str, Any], where: object) -> dict[str, Any]:
    """The manifest in the present format; `where` names the file in errors."""
    for version in range(table["format_version"], VERSION):
        table = MIGRATIONS[version](table, where)
        table["format_version"] = version + 1
    return table
