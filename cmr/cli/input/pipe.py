"""Standard input, which is a document, a question or what is typed."""

from __future__ import annotations

import sys
from pathlib import Path

PIPE = Path("-")
"""How standard input is named where a file is expected."""


def name_of(path: Path) -> str:
    """What a document is called in what is printed."""
    return "standard input" if path == PIPE else path.name


def read_bytes() -> bytes:
    """All of standard input, to its end."""
    if sys.stdin.isatty():
        print("reading what you type; Ctrl-D on a line of its own ends it", file=sys.stderr)
    return sys.stdin.buffer.read()


def piped_question() -> str | None:
    """All that comes through a pipe as one question; None where there is no pipe, or nothing."""
    if sys.stdin.isatty():
        return None
    return sys.stdin.read().strip() or None
