"""Documents: the text of a file or of standard input, or one line that says what to do."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cmr.cli.errors import UsageError
from cmr.cli.input import pdf, pipe

# Those of UTF-32 first: the little one begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PACKED = {
    b"PK\x03\x04": "a ZIP archive, as .docx, .odt and .epub are, too; save its text in a file",
    b"\x1f\x8b": "compressed; unpack it first: `gunzip -k FILE`",
    b"\xfd7zXZ\x00": "compressed; unpack it first: `unxz -k FILE`",
    b"GGUF": "a model; give it with --model",
}
_LOOKED_AT = 1 << 16
"""Bytes in which a file of no text betrays itself."""


def read_document(path: Path, option: str = "--document") -> str:
    """The text of a file; ``-`` is standard input.

    UTF-8, or what a byte order mark says; of a PDF the text of its pages.

    Raises:
        UsageError: there is no text to be had; the message begins with `option` and the path.
    """
    said = f"{option} {path}"
    with _told(path, option):
        raw = pipe.read_bytes() if path == pipe.PIPE else path.read_bytes()
    text = _text(raw, said)
    if not text.strip():
        raise UsageError(f"{said}: the document is empty; give one with text in it")
    return text


def require_there(paths: Iterable[Path], option: str = "--document") -> None:
    """Raises as `read_document` does where a file cannot be opened, before anything is loaded."""
    for path in paths:
        with _told(path, option):
            if path != pipe.PIPE:
                path.open("rb").close()


@contextmanager
def _told(path: Path, option: str) -> Iterator[None]:
    """Turn what the system says against a file into what to do about it."""
    said = f"{option} {path}"
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{said}: no such file in {_folder_of(path)}") from None
    except IsADirectoryError:
        raise UsageError(f"{said}: is a folder; give its files, each with {option}") from None
    except PermissionError:
        raise UsageError(f"{said}: you may not read it; `chmod u+r` allows the owner to") from None
    except OSError as error:
        raise UsageError(f"{said}: cannot be read: {error.strerror or error}") from None


def _text(raw: bytes, said: str) -> str:
    if raw.startswith(b"%PDF-"):
        return pdf.text_of(raw, said)
    for start, what in _PACKED.items():
        if raw.startswith(start):
            raise UsageError(f"{said}: is {what}")
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    # A zero is no sign of any text in UTF-8, and half of the bytes of English in UTF-16.
    if encoding.startswith("utf-8") and b"\0" in raw[:_LOOKED_AT]:
        raise UsageError(
            f"{said}: is no text (or UTF-16 without a mark: "
            "`iconv -f UTF-16LE -t UTF-8 FILE > NEW` makes it one)"
        )
    # Strictly: a document of another encoding would be read as text that nobody wrote.
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UsageError(
                f"{said}: begins as {encoding.upper()}, and is none from byte {error.start} on; "
                "save it as UTF-8"
            ) from None
        raise UsageError(
            f"{said}: not UTF-8 text (byte {error.start}); if it is of an old Windows, "
            "`iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW` makes it so"
        ) from None


def _folder_of(path: Path) -> str:
    """Where a file was looked for, which is where somebody's mistake often lies."""
    return os.path.abspath(path.parent)
