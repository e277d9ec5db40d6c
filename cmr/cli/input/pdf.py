"""The text of a PDF."""

from __future__ import annotations

import io
import logging

from cmr.cli.display import counted
from cmr.cli.errors import UsageError


def text_of(raw: bytes, said: str) -> str:
    """The text of all pages, one below the other.

    Args:
        raw: the file.
        said: what an error begins with.

    Raises:
        UsageError: pypdf is not installed, or the file is damaged, locked or has no text.
    """
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError:
        raise UsageError(
            f"{said}: a PDF needs the package pypdf: run `pip install 'cmr[pdf]'`, "
            "or save its text in a file"
        ) from None
    # It tells of every oddity that it mends.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        # Many are locked by an empty password, against changes alone.
        if reader.is_encrypted and not reader.decrypt(""):
            raise UsageError(f"{said}: the PDF is locked by a password; save it without one")
        pages = [page.extract_text() for page in reader.pages]
    except (PyPdfError, ImportError, ValueError, KeyError, TypeError, AttributeError) as error:
        # A damaged file raises whatever its reader stumbles over; a locked one may need a package.
        raise UsageError(
            f"{said}: the PDF cannot be read: {error}; save its text in a file"
        ) from error
    if not "".join(pages).strip():
        raise UsageError(
            f"{said}: no text in {counted(len(pages), 'page')}, which are pictures it seems; "
            "a program for text recognition (such as ocrmypdf) puts it there"
        )
    return "\n\n".join(pages)
