"""The key of saved memories: from a file or the environment, never from the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cmr.cli.errors import UsageError, naming

VARIABLE = "CMR_MEMORY_KEY"
HOW = f"--key-file FILE, or a passphrase in {VARIABLE}"


@dataclass(frozen=True)
class Key:
    """What encrypts and opens saved memories: 32 bytes, a passphrase, or None for no key."""

    # Left out of the representation, so that no log or traceback shows it.
    value: bytes | str | None = field(default=None, repr=False)
    # Whether `--key-file` gave it for this command: a memory in the clear is an error then, while
    # the environment's passphrase is for those that need it.
    asked_for: bool = False


def find_key(file: Path | None) -> Key:
    """The key in a file, else the passphrase of the environment, if any.

    A file of 32 bytes that are no printable text is a key; any other is a passphrase on one line.
    """
    if file is None:
        return Key(os.environ.get(VARIABLE) or None)
    with naming(f"--key-file {file}"):
        raw = file.read_bytes()
    # A passphrase may have 32 characters, too: random bytes are hardly ever printable text.
    try:
        text = raw.decode("utf-8").rstrip("\r\n")
        readable = text.isprintable()
    except UnicodeDecodeError:
        readable = False
    if len(raw) == 32 and not (readable and text):
        return Key(raw, asked_for=True)
    if not readable or not text:
        raise UsageError(
            f"--key-file {file}: 32 bytes, or a passphrase on one line expected, got "
            + (f"{len(raw)} bytes" if raw else "an empty file")
        )
    return Key(text, asked_for=True)
