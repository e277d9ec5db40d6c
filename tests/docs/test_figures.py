"""A figure in a document is one of a row, and the rows that documents name are there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, documents

RESULTS = ROOT / "benchmarks" / "results"
NAMED = re.compile(r"\b(?!own/)(?<!own/)([a-z_]+(?:/[a-z_]+)?\.jsonl)\b")
NOT_ROWS = {
    "docs/evaluate.md": {"answers.jsonl", "questions.jsonl", "replies.jsonl", "summary.jsonl"},
    "docs/secure.md": {"keys.jsonl"},
    "docs/serving.md": {"keys.jsonl"},
    "docs/use.md": {"q.jsonl"},
}
"""Files of other kinds that documents name. `own/` has a reader's rows, which git ignores."""
PLACES = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users)/")

Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    """The rows of a file in `benchmarks/results/`."""
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def whole(value: float) -> str:
    return f"{value:,.0f}"


FIGURES: tuple[tuple[str, str, str, Row, str, Callable[[float], str]], ...] = (
    *(
        ("docs/pictures/tiers.svg", "{} bytes a token", "tiers.jsonl", {"tier": tier},
         "bytes_per_token", whole)
        for tier in ("recent", "working", "long_term")
    ),
    (
        "docs/limits.md", "fact in {} at 5,000 tokens", "retrieval.jsonl",
        {"system": "default", "kind": "paraphrased", "tokens": 5000, "seed": 0}, "read@2", percent,
    ),
)  # fmt: skip
"""Document, words around a figure, file, which row, field, and how the figure is written."""


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure[0]}: {figure[1]}")
def test_a_figure_is_that_of_its_row(
    figure: tuple[str, str, str, Row, str, Callable[[float], str]],
) -> None:
    document, words, name, which, field, written = figure
    found = [row for row in rows(name) if which.items() <= row.items()]
    assert found, f"{name} has no row with {which}"
    text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    assert any(words.format(written(row[field])) in text for row in found)


def test_the_table_of_the_assistants_is_that_of_their_rows() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (\w+ \w+) \| (begun|free) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.M)
    fields = ("assistant", "way", "n", "right", "without")
    measured = [tuple(str(row[name]) for name in fields) for row in rows("assistants.jsonl")]
    assert len(shown) >= 3
    assert {(name.replace(" ", "_"), *rest) for name, *rest in shown} <= set(measured)


@pytest.mark.parametrize("document", documents())
def test_the_rows_that_a_document_names_are_there(document: str) -> None:
    named = set(NAMED.findall((ROOT / document).read_text(encoding="utf-8")))
    for name in named - NOT_ROWS.get(document, set()):
        within = [path for path in RESULTS.rglob("*.jsonl") if path.as_posix().endswith(f"/{name}")]
        assert within, f"{document} names {name}, which is not in benchmarks/results/"


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.jsonl")), ids=lambda path: path.relative_to(RESULTS).as_posix()
)
def test_a_row_can_be_read_and_names_no_place_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text and all(isinstance(json.loads(line), dict) for line in text.splitlines())
    assert PLACES.findall(text) == []
