"""``cmr memory forget``: show what would go, ask, erase it, and look that it is gone."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from rich.markup import escape

from cmr.cli.display import console, counted, size
from cmr.cli.errors import UsageError, naming
from cmr.cli.inspect import shown
from cmr.cli.keys import Key
from cmr.cli.stored import Stored, Texts, look_into, named, open_stored
from cmr.errors import CorruptMemoryError
from cmr.memory import archive
from cmr.memory.inspection import Inspection, StoredBlock
from cmr.memory.spans import holding_saved

PREVIEW = 10
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Wanted:
    """What blocks must fit to be forgotten; None and no ids: anything does."""

    session: str | None
    ids: list[int]
    text: str | None
    older_than: str | None


def run(path: Path, wanted: Wanted, yes: bool, model: str | None, key: Key) -> None:
    """Forget the blocks that fit all that is given; a session that is given alone ends."""
    more = bool(wanted.ids) or wanted.text is not None or wanted.older_than is not None
    if wanted.session is None and not more:
        raise UsageError("forget what? Give --session, --id, --text or --older-than")
    if wanted.text is not None and not wanted.text.strip():
        raise UsageError("--text: the text is empty")
    age = None if wanted.older_than is None else duration(wanted.older_than)
    sessions = [] if wanted.session is None else [wanted.session]
    stored, texts, blocks = look_into(path, key, model, sessions)
    out = console()
    gone = _chosen(stored, texts, wanted, age)
    ended = [] if more else sessions
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
    with naming(f"{path}"):
        report = archive.forget(stored.saved, gone, ended)
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


def _chosen(stored: Stored, texts: Texts, wanted: Wanted, age: float | None) -> torch.Tensor:
    """Which blocks fit all that is wanted, `[n]` bool; `age` in seconds."""
    saved, session = stored.saved, wanted.session
    there = torch.ones(len(saved), dtype=torch.bool)
    if session is not None:
        there = archive.of_sessions(saved, [session])
    gone = there.clone()
    if wanted.ids:
        strange = sorted(set(wanted.ids) - set(saved.numbers[there].tolist()))
        if strange:
            of = f"session {session!r} of " if session is not None else ""
            raise UsageError(
                f"--id {strange[0]}: no such block in {of}{stored.path}; see cmr memory inspect"
            )
        gone &= torch.isin(saved.numbers, torch.tensor(wanted.ids, dtype=torch.int64))
    if age is not None:
        gone &= saved.columns["time"] <= time.time() - age
    if wanted.text is not None:
        texts.require("--text")
        # A span is looked for in all that the session said, then narrowed down.
        gone &= holding_saved(saved, there, wanted.text, texts.decode)
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
