"""``cmr memory inspect``: what a saved memory holds, as a table or as JSON lines."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from cmr.cli.display import console, counted, size
from cmr.cli.errors import UsageError
from cmr.cli.keys import Key
from cmr.cli.stored import Stored, look_into
from cmr.memory.inspection import Inspection, Question, StoredBlock

TABLE_WIDTH = 130
"""Columns from which the table leaves the text enough room."""
SHOWN_CHARACTERS = 240
OPTIONS = {"text": "contains", "min_relevance": "min-relevance"}
"""Options that are not called after the field of `Question` that they set."""


def run(path: Path, wanted: dict[str, Any], as_json: bool, model: str | None, key: Key) -> None:
    """Show the blocks that fit a `Question`'s fields, then a line on the whole memory."""
    try:
        question = Question(**wanted)
    except ValueError as error:
        name, _, rest = str(error).partition(":")
        raise UsageError(f"--{OPTIONS.get(name, name)}:{rest}") from None
    sessions = [] if question.session is None else [question.session]
    stored, texts, blocks = look_into(path, key, model, sessions)
    # Text is made only where it is looked at: of all blocks to search it, else of those shown.
    if question.text is not None:
        texts.require("--contains")
        found = question.of(texts.of(blocks))
    else:
        few = question.of(blocks)
        found = Inspection(texts.of(few), few.total)
    # JSON lines stand alone on standard output, so that a program can read them.
    say = texts.err if as_json else console()
    if as_json:
        for block in found.to_dicts():
            print(json.dumps(block, ensure_ascii=False))
    elif len(found):
        say.print(shown(found, say.width, "; --limit shows more"))
    if not len(found):
        say.print("nothing stored matches" if blocks else "nothing is stored")
    if not texts.known and len(found):
        say.print(f"[dim]token ids instead of text: {escape(texts.why_not)}[/dim]")
    say.print(f"[dim]{escape(summary(stored, blocks))}[/dim]")


def shown(found: Inspection, width: int, hint: str = "") -> RenderableType:
    """The blocks as a table; where that would squeeze the text, two paragraphs a block.

    `hint` is said where there are more than are shown.
    """
    more = counted(found.total, "block")
    if len(found) < found.total:
        more = f"{len(found)} of {more}{hint}"
    if width >= TABLE_WIDTH:
        table = found.table()
        table.caption = more
        return table
    parts: list[RenderableType] = []
    for block in found:
        line = Text(f"{block.id}", "bold cyan")
        line.append("".join(f" · {part}" for part in _facts(block)), "not bold default dim")
        parts.append(line)
        parts.append(Padding(Text(_flat(block)), (0, 0, 0, 2)))
    parts.append(Text(more, "dim italic"))
    return Group(*parts)


def _facts(block: StoredBlock) -> list[str]:
    facts = [
        block.session,
        block.tier,
        f"{block.start:,}–{block.end:,}",
        f"relevance {block.relevance:.2f}",
        f"recalled {block.access_count}×",
        when(block.born),
    ]
    return [*facts, "pinned"] if block.pinned else facts


def _flat(block: StoredBlock) -> str:
    """The text on one line, cut where it is long; token ids where there is no text."""
    text = block.text if block.text is not None else " ".join(map(str, block.token_ids))
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN_CHARACTERS else flat[: SHOWN_CHARACTERS - 1] + "…"


def summary(stored: Stored, blocks: Sequence[StoredBlock]) -> str:
    """One line on a whole saved memory."""
    saved = stored.saved
    tiers = Counter(block.tier for block in blocks)
    tokens = sum(len(block.token_ids) for block in blocks)
    parts = [
        f"{counted(len(blocks), 'block')}, {tokens:,} tokens",
        counted(len(stored.sessions), "session"),
        ", ".join(f"{tier} {count:,}" for tier, count in tiers.items()),
        f"{size(stored.bytes_on_disk)} on disk, "
        + ("encrypted" if stored.key is not None else "not encrypted"),
        f"format {saved.format_version}",
        f"model {stored.model_name}" if stored.model_name else "",
        f"saved {when(stored.saved_at)}",
    ]
    return " · ".join(part for part in parts if part)


def when(seconds: float) -> str:
    """Local date and time of seconds since the epoch."""
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
