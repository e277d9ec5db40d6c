"""Rows as data: JSON lines that are appended while questions are answered, and found again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cmr.errors import EvaluationError

Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file.

    A last line without an end was being written when the program was ended: it is taken away.

    Raises:
        EvaluationError: a line is not a row; the message names it.
    """
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        path.write_bytes(whole)
    found = []
    for number, line in enumerate(whole.decode("utf-8", errors="replace").splitlines(), 1):
        # Not passed over: somebody else may have written it, and would miss it.
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise EvaluationError(f"{path}:{number}: a row expected; take that line away")
        found.append(row)
    return found


def append(path: Path, row: Row) -> None:
    """Adds a row, whole and at once."""
    # One write: who is ended meanwhile leaves a last line without its end, nothing worse.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write(path: Path, rows: list[Row]) -> None:
    """These rows in place of what the file held."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def key_of(**conditions: Any) -> str:
    """What a row is found again by: the same conditions have the same key."""
    # Sorted: in which order conditions are named says nothing.
    told = json.dumps(conditions, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def digest(text: str) -> str:
    """What stands for a long text in a key."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
