"""``cmr memory export``: what is stored, as JSON lines or as plain text, in a private file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from cmr.cli.display import console, counted, size
from cmr.cli.errors import UsageError, naming
from cmr.cli.keys import Key
from cmr.cli.stored import Texts, look_into
from cmr.memory.inspection import StoredBlock


def run(
    path: Path, target: Path, *, sessions: list[str], force: bool, model: str | None, key: Key
) -> None:
    """Write the blocks of some sessions, or of all, to a file, whose ending says the form."""
    plain = target.suffix.lower() == ".txt"
    if not plain and target.suffix.lower() != ".jsonl":
        raise UsageError(f"--out {target}: a name that ends in .jsonl or .txt expected")
    if target.is_dir():
        raise UsageError(f"--out {target}: is a folder, a file is expected")
    # Also a link that leads nowhere: what it names would be written.
    if os.path.lexists(target) and not force:
        raise UsageError(f"--out {target}: the file exists; --force replaces it")
    stored, texts, found = look_into(path, key, model, sessions)
    rank = {name: number for number, name in enumerate(sessions or stored.sessions)}
    blocks = sorted(
        (block for block in found if block.session in rank),
        key=lambda block: (rank[block.session], block.start, block.id),
    )
    if plain:
        texts.require(f"--out {target}")
        lines = _plain(blocks, texts)
    else:
        lines = (json.dumps(asdict(b), ensure_ascii=False) + "\n" for b in texts.of(blocks))
    written = write_private(target, lines, force)
    if not texts.known:
        texts.err.print(f"[dim]without text: {escape(texts.why_not)}[/dim]")
    count = len({block.session for block in blocks})
    console().print(
        f"wrote {counted(len(blocks), 'block')} of {counted(count, 'session')} to "
        f"{escape(str(target))}: {size(written)}, not encrypted, readable by you alone"
    )


def _plain(blocks: Sequence[StoredBlock], texts: Texts) -> Iterator[str]:
    """The text of each session under its name; places with nothing stored are marked."""
    session, at = None, 0
    ids: list[int] = []
    # Tokens that follow each other are decoded together: a character may be in two blocks.
    for block in blocks:
        if block.session != session or block.start != at:
            yield texts.decode(ids)
            ids = []
        if block.session != session:
            yield f"{'' if session is None else chr(10) * 2}===== session {block.session} =====\n"
            session, at = block.session, 0
        if block.start > at:
            yield f"\n[... {counted(block.start - at, 'token')} not stored ...]\n"
        ids += block.token_ids
        at = block.end
    if ids:
        yield texts.decode(ids) + "\n"


def write_private(target: Path, pieces: Iterator[str], force: bool) -> int:
    """Write a file of mode 0600, all of it or not at all; returns its bytes."""
    # A file that is replaced stays as it is until the new one is whole.
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}") if force else target
    with naming(f"--out {target}"):
        # The mode is set as the file is made, so it is never readable by others, not for a moment.
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise UsageError(f"--out {target}: the file exists; --force replaces it") from None
        try:
            with os.fdopen(fd, "w", encoding="utf-8", errors="replace", newline="") as file:
                file.writelines(pieces)
            os.replace(path, target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return target.stat().st_size
