"""``/stats``: how the memory stands, for people and for scripts."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Column, Table

from cmr.cli.display import counted, size

_TIERS = {"recent": "recent", "working": "working", "long_term": "long-term"}


def as_json(said: int, stats: dict[str, Any]) -> str:
    """One line of JSON: `memory.stats()` and `conversation_tokens`, which are `said`."""
    return json.dumps({"conversation_tokens": said, **stats}, default=str)


def as_table(said: int, stats: dict[str, Any]) -> Table:
    """The figures that people ask for, in words.

    Args:
        said: tokens of the conversation so far.
        stats: of `memory.stats()`.
    """
    table = Table(Column(style="dim", no_wrap=True), Column(), box=None, show_header=False)
    table.add_row("conversation", counted(said, "token"))
    room = stats["capacity_tokens"]
    used = stats["tokens"] / room if room else 0.0
    table.add_row(
        "in memory",
        f"{counted(stats['tokens'], 'token')} of {counted(stats['sessions'], 'session')}, "
        f"room for {room:,} ({used:.0%} full), {size(stats['bytes'])}",
    )
    for name, tier in stats["tiers"].items():
        table.add_row(
            f"  {_TIERS.get(name, name)}",
            f"{tier['blocks']:,} of {counted(tier['capacity_blocks'], 'block')}, "
            f"{size(tier['bytes'])}",
        )
    table.add_row("searches", _searches(stats))
    if gone := stats["evicted_blocks"] + stats["expired_blocks"]:
        table.add_row("forgotten", f"{counted(gone, 'block')}, for want of room or by their age")
    if not stats["active"]:
        table.add_row("", "the memory is paused: nothing is recalled")
    return table


def _searches(stats: dict[str, Any]) -> str:
    asked, read = stats["searches"], stats["recalls"]
    if not asked:
        return "none yet: all that was said is still in the window"
    return f"{asked:,}, of which {read:,} found something to read ({read / asked:.0%})"
