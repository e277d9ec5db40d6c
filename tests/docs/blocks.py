"""The code blocks of the documents, as they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

UNFENCED = {
    "docs/spec/project-readme.md": (
        ("from types import SimpleNamespace\n", " classDiagram\n"),
        ("from models.cmr_full_integrated import FullCMRModel\n", "Note: The quickstart"),
        ("# Memory configuration\nmemory_config = {\n'", "For advanced configuration"),
    )
}
"""Python that stands in a document without fences: what it begins with, what follows it."""


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        file: path of the document from the repository's root.
        number: of the block among those of its language in the document, from 1.
        line: of its first line in the document, from 1.
        language: what the fence says.
        code: as written.
    """

    file: str
    number: int
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.file}#{self.number}"


def documents() -> list[str]:
    """Every document that is held to its code, from the repository's root."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    found += [ROOT / folder / "README.md" for folder in ("examples", "benchmarks")]
    found += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs" / "spec").glob("*.md"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(language: str) -> list[Block]:
    """The blocks of a language in all documents."""
    return [block for file in documents() for block in of_file(file, language)]


def of_file(file: str, language: str) -> list[Block]:
    """The blocks of a language in one document, in their order."""
    text = (ROOT / file).read_text(encoding="utf-8")
    spans = [m.span(2) for m in FENCE.finditer(text) if m.group(1) == language]
    if language == "python":
        for begin, behind in UNFENCED.get(file, ()):
            start = text.index(begin)
            spans.append((start, text.index(behind, start)))
    return [
        Block(file, number, text.count("\n", 0, start) + 1, language, text[start:end])
        for number, (start, end) in enumerate(sorted(spans), 1)
    ]
