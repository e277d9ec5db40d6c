"""Questions about documents: what one is, and how a file of them is read."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmr.config.checks import nearest
from cmr.errors import EvaluationError
from cmr.evaluation.words import normalise

FIELDS = ("question", "answers", "parts", "document", "evidence", "kind")
"""What a line of a file of questions may say."""


@dataclass(frozen=True)
class Question:
    """What is asked about one document, and what is a right answer.

    Args:
        text: what the model is asked.
        document: the name of the document that it is about.
        answers: accepted answers, any of which counts.
        parts: in place of `answers`: what has to be named, each of which counts for its share.
        evidence: passages of the document that answer it, as they stand there.
        kind: a word that questions are grouped by.
    """

    text: str
    document: str
    answers: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise EvaluationError("question: a text expected, got an empty one")
        if bool(self.answers) == bool(self.parts):
            raise EvaluationError("either answers or parts expected, and at least one")
        for name in ("answers", "parts", "evidence"):
            for word in getattr(self, name):
                if not normalise(word):
                    raise EvaluationError(f"{name}: a text with words expected, got {word!r}")


def read_questions(path: Path, documents: Collection[str]) -> list[Question]:
    """The questions of a file, one JSON object a line; empty lines are passed over.

    Args:
        path: the file, in UTF-8. A line has `question` (text), `answers` (a list of texts, or one
            text) or `parts` (the same), and may have `document` (needed where there are several),
            `evidence` (as `answers`) and `kind` (text). See `Question`.
        documents: the names that `document` may be.

    Raises:
        EvaluationError: the file cannot be read, has no question, or a line is not what is
            expected; the message names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_question(line, documents))
            except EvaluationError as error:
                raise EvaluationError(f"{path}:{number}: {error}") from None
    if not found:
        raise EvaluationError(f"{path}: a question a line expected, the file has none")
    return found


def _question(line: str, documents: Collection[str]) -> Question:
    try:
        told = json.loads(line)
    except json.JSONDecodeError as error:
        raise EvaluationError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(told, dict):
        raise EvaluationError(f"an object like {{'question': …}} expected, got {line.strip()!r}")
    # A field that is misspelt would be missing without a word.
    for name in told:
        if name not in FIELDS:
            raise EvaluationError(f"unknown field {name!r}: {nearest(name, FIELDS)}")
    if "question" not in told:
        raise EvaluationError("question: missing")
    document = _text(told, "document")
    if not document and len(documents) == 1:
        # Whoever has one document need not name it in every line.
        document = next(iter(documents))
    if document not in documents:
        said = f"got {document!r}: {nearest(document, documents)}" if document else "missing"
        raise EvaluationError(f"document: the name of one of {len(documents)} expected, {said}")
    lists = {name: _texts(told, name) for name in ("answers", "parts", "evidence")}
    return Question(_text(told, "question"), document, **lists, kind=_text(told, "kind"))


def _text(told: dict[str, Any], name: str) -> str:
    value = told.get(name, "")
    if not isinstance(value, str):
        raise EvaluationError(f"{name}: a text expected, got {value!r}")
    return value


def _texts(told: dict[str, Any], name: str) -> tuple[str, ...]:
    value = told.get(name, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise EvaluationError(f"{name}: a list of texts expected, got {value!r}")
    return tuple(values)
