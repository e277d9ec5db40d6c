"""What is still to be forgotten in a folder: small files in it, which hold for whoever opens it.

Who cannot erase something now, as somebody reads it or saves beside, writes a note. Whoever opens
the folder leaves out what its notes name, and erases it once the folder can be locked; the note
goes last. A note has numbers, ids and nothing else, in an encrypted folder, too::

    .forget-<16 hex>.json    {"format": "cmr-forget", "format_version": 1, "save": id of a save,
                              "then": id that the save has without them, "numbers": of blocks,
                              "sessions": their numbers there, "uids": the sessions' own ids}

Numbers are those of the one save. Of any other save the sessions with the `uids` are left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from cmr.errors import StoreError
from cmr.memory.store.folder import NOTE, SAFELY, Folder, read_whole, sync_folder
from cmr.memory.store.form import Content, corrupt, dump, parse, take

FORMAT, VERSION = "cmr-forget", 1
# About 20 bytes a block: 3 million blocks.
MAX_NOTE = 64 << 20
_ID = re.compile(r"[0-9a-f]{32}")


class Note(NamedTuple):
    """What is to go: blocks and sessions of one save by their numbers, of any other by `uids`.

    `then` is the id that the save gets when it is done: who wrote the note knows it again by that.
    """

    save: str
    then: str
    numbers: list[int]
    sessions: list[int]
    uids: list[str]


Notes = dict[str, Note]
"""File name to note."""


def read(folder: Folder) -> Notes:
    """All notes in a folder; CorruptMemoryError for one that cannot be understood."""
    found = {}
    for name in folder.names():
        if NOTE.fullmatch(name):
            # Done by somebody else since the folder was listed.
            with contextlib.suppress(FileNotFoundError):
                found[name] = _read(folder, name)
    return found


def _read(folder: Folder, name: str) -> Note:
    where = folder.path / name
    if not os.path.lexists(where):
        raise FileNotFoundError
    table = parse(read_whole(where, MAX_NOTE), where)
    if take(table, "format", str, where) != FORMAT or table.get("format_version") != VERSION:
        corrupt(where, f"'format': {FORMAT!r} of version {VERSION} expected, got something else")
    note = Note(
        take(table, "save", str, where),
        take(table, "then", str, where),
        *(take(table, at, list, where) for at in ("numbers", "sessions", "uids")),
    )
    for key, values in note._asdict().items():
        for value in [values] if isinstance(values, str) else values:
            if key in ("numbers", "sessions"):
                fits = type(value) is int and 0 <= value < 1 << 63
            else:
                fits = isinstance(value, str) and _ID.fullmatch(value) is not None
            if not fits:
                corrupt(where, f"{key!r}: a number or id expected, got {str(value)[:40]!r}")
    return note


def write(folder: Folder, note: Note) -> None:
    """Put a note into a folder for good; OSError where nothing can be written there."""
    text = dump({"format": FORMAT, "format_version": VERSION, **note._asdict()})
    name = f".forget-{secrets.token_hex(8)}"
    part = folder.path / f"{name}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, folder.path / f"{name}.json")
    sync_folder(folder.path)


def done(folder: Folder, notes: Notes, was: str | None, now: str) -> None:
    """Remove notes that a save has carried out, by whoever holds the folder's lock.

    Others that were written meanwhile for the save `was`, whose numbers `now` has too, are written
    again for that one. `was` None: numbers of what was there mean nothing now.
    """
    for name, note in read(folder).items():
        if name not in notes and note.save == was and was != now:
            write(folder, note._replace(save=now, then=secrets.token_hex(16)))
            notes = {**notes, name: note}
    for name in notes:
        folder.remove(folder.path / name, overwrite=False)


def left_out(
    notes: Iterable[Note],
    identity: str | None,
    header: Mapping[str, Any],
    numbers: torch.Tensor,
    session: torch.Tensor,
) -> tuple[torch.Tensor, set[int]]:
    """What notes say must go of blocks of the save `identity`: `[n]` bool, and session numbers."""
    blocks: set[int] = set()
    ended: set[int] = set()
    for note in notes:
        if note.save == identity:
            blocks.update(note.numbers)
            ended.update(note.sessions)
        elif note.then != identity:
            ended.update(n for n, uids in _uids(header).items() if uids & set(note.uids))
    gone = torch.isin(numbers, torch.tensor(sorted(blocks), dtype=torch.int64))
    gone |= torch.isin(session, torch.tensor(sorted(ended), dtype=torch.int64))
    return gone, ended & _uids(header).keys()


def without(header: dict[str, Any], ended: set[int]) -> dict[str, Any]:
    """A header without the sessions of these numbers, which it has."""
    if not ended:
        return header
    kept = [entry for entry in header["sessions"] if _number(entry) not in ended]
    return {**header, "sessions": kept}


def _uids(header: Mapping[str, Any]) -> dict[int, set[str]]:
    """Number of each session in a header to its ids, where it says any."""
    # Headers are whatever somebody saves: one without such a list has no sessions to leave out.
    entries = header.get("sessions")
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        if (number := _number(entry)) is not None:
            uids = entry.get("uids")
            found[number] = {
                u for u in (uids if isinstance(uids, list) else ()) if isinstance(u, str)
            }
    return found


def _number(entry: Any) -> int | None:
    number = entry.get("number") if isinstance(entry, dict) else None
    return number if isinstance(number, int) else None


class Rest:
    """Content without all but the blocks at positions `at`, with a header of its own."""

    def __init__(self, whole: Content, at: torch.Tensor, header: dict[str, Any]) -> None:
        self._whole, self._at = whole, at
        self.header, self.kinds = header, whole.kinds
        self.kind, self.numbers = whole.kind[at], whole.numbers[at]
        self.session = whole.session[at]
        self.columns = {name: column[at] for name, column in whole.columns.items()}

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        """One part of the blocks of a kind at positions `at`."""
        return self._whole.rows(kind, part, self._at[at])


def check_obeyed(
    folder: Folder, content: Content, notes: Notes, was: str | None, goes_on: bool
) -> None:
    """Raises StoreError where content that takes the place of the save `was` has what notes name.

    `goes_on`: its numbers are those of `was`; where they are not, it cannot be told which of its
    blocks are those that are to go.
    """
    gone, ended = left_out(
        notes.values(), was if goes_on else None, content.header, content.numbers, content.session
    )
    unknown = not goes_on and any(note.save == was and note.numbers for note in notes.values())
    if unknown or ended or bool(gone.any()):
        what = "blocks, by other numbers" if unknown else f"blocks {content.numbers[gone].tolist()}"
        raise StoreError(
            f"{folder.path}: what is to be forgotten there may be in what is saved ({what[:80]}): "
            "forget it here as well, load the folder again, or save to another one"
        )
