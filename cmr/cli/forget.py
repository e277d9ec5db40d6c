"""``cmr memory forget``: show what would go, ask, erase it, and look that it is gone."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch
import typer
from rich.markup import escape

from cmr.cli.display import console, counted, size
from cmr.cli.errors import UsageError
from cmr.cli.inspect import shown
from cmr.cli.keys import Key
from cmr.cli.stored import Stored, Texts, named, open_stored
from cmr.errors import CorruptMemoryError
from cmr.memory import archive
from cmr.memory.inspection import Inspection, StoredBlock
from cmr.memory.spans import holding_saved

PREVIEW = 10
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def run(
    path: Path,
    *,
    session: str | None,
    ids: list[int],
    text: str | None,
    older_than: str | None,
    yes: bool,
    model: str | None,
    key: Key,
) -> None:
    """Forget the blocks that fit all that is given; a session that is given alone ends."""
    if session is None and not ids and text is None and older_than is None:
        raise UsageError("forget what? Give --session, --id, --text or --older-than")
    if text is not None and not text.strip():
        raise UsageError("--text: the text is empty")
    age = None if older_than is None else duration(older_than)
    stored = open_stored(path, key)
    if session is not None:
        stored.require([session])
    out = console()
    texts = Texts(stored, model)
    blocks = stored.blocks()
    gone = _chosen(stored, texts, session, ids, text, age)
    ended = [session] if session is not None and not ids and text is None and age is None else []
    going = [block for block, goes in zip(blocks, gone.tolist(), strict=True) if goes]
    tokens = sum(len(block.token_ids) for block in going)
    if going:
        preview = sorted(going, key=lambda block: (block.session, block.start))[:PREVIEW]
        out.print(shown(Inspection(texts.of(preview), len(going)), out.width))
        if not texts.known:
            out.print(f"[dim]token ids instead of text: {escape(texts.why_not)}[/dim]")
    else:
        out.print("nothing stored matches")
    if (going or ended) and not yes and not _agreed(going, tokens, ended):
        out.print("nothing was changed")
        raise typer.Exit(1)
    # Said afterwards, as forgetting writes the files anew and they may well get smaller.
    before = stored.bytes_on_disk
    # Also where nothing matches: files may still have rows of blocks that were dropped since.
    try:
        report = archive.forget(stored.saved, gone, ended)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    after = _look(path, key, going, ended)
    if going or ended:
        end = f", session {named(ended)} ended" if ended else ""
        out.print(f"forgot {counted(len(going), 'block')}, {tokens:,} tokens{end}")
    left = after.bytes_on_disk
    less = f", {size(before - left)} less than before" if left < before else ""
    out.print(
        f"[dim]{counted(report.blocks, 'block')} left, {size(left)} on disk{less}; "
        "opened again and checked[/dim]"
    )


def duration(text: str) -> float:
    """Seconds of '90s', '15m', '12h' or '30d'."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if found is None:
        raise UsageError(f"--older-than: an age such as 90s, 12h or 30d expected, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def _chosen(
    stored: Stored,
    texts: Texts,
    session: str | None,
    ids: list[int],
    text: str | None,
    age: float | None,
) -> torch.Tensor:
    """Which blocks fit all that is given, `[n]` bool."""
    saved = stored.saved
    gone = torch.ones(len(saved), dtype=torch.bool)
    if session is not None:
        gone &= archive.of_sessions(saved, [session])
    if ids:
        strange = sorted(set(ids) - set(saved.numbers[gone].tolist()))
        if strange:
            of = f"session {session!r} of " if session is not None else ""
            raise UsageError(
                f"--id {strange[0]}: no such block in {of}{stored.path}; see cmr memory inspect"
            )
        gone &= torch.isin(saved.numbers, torch.tensor(ids, dtype=torch.int64))
    if age is not None:
        gone &= saved.columns["time"] <= time.time() - age
    if text is not None:
        texts.require("--text")
        # A span is looked for in all that the session said, then narrowed down.
        there = torch.ones_like(gone) if session is None else archive.of_sessions(saved, [session])
        gone &= holding_saved(saved, there, text, texts.decode)
    return gone


def _agreed(going: list[StoredBlock], tokens: int, ended: list[str]) -> bool:
    end = f" and end session {named(ended)}" if ended else ""
    asked = f"Forget {counted(len(going), 'block')} ({tokens:,} tokens){end} for good?"
    try:
        return typer.confirm(asked)
    except typer.Abort:
        # The end of the input is no yes.
        typer.echo()
        return False


def _look(path: Path, key: Key, gone: list[StoredBlock], ended: list[str]) -> Stored:
    """The memory opened anew, with checksums right and nothing of what went."""
    stored = open_stored(path, key)
    stored.saved.verify()
    numbers = torch.tensor([block.id for block in gone], dtype=torch.int64)
    if torch.isin(stored.saved.numbers, numbers).any() or set(ended) & set(stored.sessions):
        raise CorruptMemoryError(f"{path}: what was forgotten is still there")
    return stored
