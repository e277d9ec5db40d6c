"""Figures of a page that no ledger holds."""

from __future__ import annotations

import re

from tests.docs.ledger import NUMBER, line_of
from tests.docs.not_measured import EVERYWHERE, NOT_MEASURED

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
EQUATION = re.compile(r"^    .*$", re.MULTILINE)
LEFT_OUT = (
    FENCE,
    EQUATION,
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"`[^`]*`"),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"^#.*$", re.MULTILINE),
    re.compile(r"^\d+\. ", re.MULTILINE),
)
"""Code, equations, comments, targets of links, headings, the numbers of lists: no figures."""


def blanked(text: str) -> str:
    """A page with blanks in place of what has no figures; all else stays where it is."""
    for pattern in LEFT_OUT:
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def numbers(text: str) -> list[tuple[int, int]]:
    """From where to where a number stands in the prose and the tables of a page."""
    found = re.finditer(rf"(?<![\w.,]){NUMBER}(?!\w)", blanked(text))
    return [match.span() for match in found]


def unheld(document: str, text: str, held: list[tuple[int, int]]) -> list[str]:
    """The numbers of a page that are neither held nor known as no figures, a line each."""
    out = []
    free = held + [span for pattern in patterns(document) for span in spans(pattern, text)]
    for begin, end in numbers(text):
        digits = begin + (text[begin] in "+-−")
        if not any(first <= digits and end <= last for first, last in free):
            around = " ".join(text[max(0, begin - 40) : end + 40].split())
            out.append(
                f"{document}:{line_of(text, begin)}: {text[begin:end]} is held by no row: … "
                f"{around} …"
            )
    return out


def patterns(document: str) -> list[str]:
    """What stands in a page that is no figure: of all pages, and of this one."""
    own = NOT_MEASURED.get(document, {})
    return [*EVERYWHERE.values(), *(phrase for phrases in own.values() for phrase in phrases)]


def spans(pattern: str, text: str) -> list[tuple[int, int]]:
    """Where a pattern stands, wherever lines break."""
    return [match.span() for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.MULTILINE)]
