"""Documents: files of a folder as texts, and where in its tokens something stands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmr.errors import EvaluationError
from cmr.evaluation.prompts import encode
from cmr.evaluation.words import normalise


def find_documents(path: Path) -> dict[str, Path]:
    """The files below a folder by their path in it, or one file by its name; hidden ones not.

    Raises:
        EvaluationError: there is no such file or folder, or nothing in it.
    """
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise EvaluationError(f"{path}: a file or a folder with documents expected")
    # Hidden files are what editors and version control keep there, nobody's documents.
    files = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    found = {
        name.as_posix(): file
        for name, file in files.items()
        if not any(part.startswith(".") for part in name.parts)
    }
    if not found:
        raise EvaluationError(f"{path}: documents expected, the folder has no file")
    return found


def read_documents(files: dict[str, Path], names: Iterable[str]) -> dict[str, str]:
    """The texts of the files of these names, each once.

    Raises:
        EvaluationError: a file is not UTF-8, cannot be read, or has no words.
    """
    texts = {}
    for name in dict.fromkeys(names):
        # Strictly UTF-8: another encoding would be read as a text that nobody wrote.
        try:
            texts[name] = files[name].read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise EvaluationError(
                f"{files[name]}: not UTF-8 text (byte {error.start}); convert it first"
            ) from None
        except OSError as error:
            raise EvaluationError(f"{files[name]}: {error.strerror or error}") from None
        if not normalise(texts[name]):
            raise EvaluationError(f"{files[name]}: a text expected, it has no words")
    return texts


@dataclass(frozen=True)
class Document:
    """A text by its name, and its token ids without special tokens."""

    name: str
    text: str
    token_ids: list[int]

    @classmethod
    def of(cls, tokenizer: Any, name: str, text: str) -> Document:
        """The document as a tokenizer cuts it."""
        return cls(name, text, encode(tokenizer, text))

    def spans_of(self, tokenizer: Any, evidence: Iterable[str]) -> list[tuple[int, int]]:
        """The tokens [start, end) of each piece of evidence; line breaks count as blanks.

        Raises:
            EvaluationError: a piece does not stand in the text.
        """
        return [self._span(tokenizer, piece) for piece in evidence]

    def _span(self, tokenizer: Any, piece: str) -> tuple[int, int]:
        found = place(self.text, piece)
        if found is None:
            raise EvaluationError(f"evidence: {piece!r} does not stand in {self.name}")
        # Counted by what stands before: tokenizers without offsets can say that, too.
        start = len(encode(tokenizer, self.text[: found[0]]))
        end = len(encode(tokenizer, self.text[: found[1]]))
        # A token may reach over both borders: then it is the piece.
        return min(start, end - 1), end


def place(text: str, piece: str) -> tuple[int, int] | None:
    """The letters [start, end) of a piece of a text; None: it is not there."""
    # Each copy of a text breaks its lines elsewhere.
    found = re.search(r"\s+".join(map(re.escape, piece.split())), text)
    return found.span() if found else None
