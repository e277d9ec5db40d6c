"""Questions: those of the command line, else the one that comes through a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmr.cli.errors import UsageError
from cmr.cli.input.pipe import PIPE, piped_question


def checked(questions: Sequence[str], documents: Sequence[Path], needed: bool) -> list[str]:
    """The questions that are asked.

    Args:
        questions: of the command line.
        documents: of the command line; one of them may be what comes through the pipe.
        needed: whether there must be one.

    Raises:
        UsageError: there is none, or an empty one.
    """
    if not questions and needed:
        if PIPE in documents:
            raise UsageError("--document -: what comes through the pipe is read; give --question")
        piped = piped_question()
        if piped is None:
            raise UsageError(
                "nothing to do: give --question, a question through a pipe, "
                "or --save to keep what is read"
            )
        return [piped]
    for question in questions:
        if not question.strip():
            raise UsageError("--question: a question expected, got an empty one")
    return list(questions)
