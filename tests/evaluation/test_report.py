"""What rows say of systems, and the page that shows it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cmr.evaluation import Evaluation, EvaluationError, rows
from cmr.evaluation.machine import machine
from cmr.evaluation.report.page import CONDITIONS
from cmr.evaluation.summary import summarise


def row(system: str, question: int, score: float | None, document: str = "a", **more: Any) -> Any:
    told = {"reply": None, "why": "too long"} if score is None else {
        "reply": "<b>17</b>", "contains": score, "exact": 0.0, "f1": 0.25,
        "found": None, "shown_tokens": 10, "prepare_seconds": 2.0,
        "first_token_seconds": 0.5 + question, "seconds": 3.0,
    }  # fmt: skip
    about = {name: "?" for name in CONDITIONS} | machine()
    return {
        **about, "system": system, "question": question, "kind": f"k{question % 2}",
        "asked": f"Is 1 < {question}?", "expected": ("17",), "document": document,
        "document_tokens": 100, "settings": {"blocks": 2}, **told, **more,
    }  # fmt: skip


ROWS = [
    *(row("memory", n, 1.0, found=1.0) for n in range(6)),
    *(row("bm25", n, float(n < 3)) for n in range(6)),
    *(row("full-context", n, None if n else 0.5) for n in range(6)),
]


def test_scores_differences_and_seconds() -> None:
    memory, bm25, full = summarise(ROWS)
    assert (memory["score"], bm25["score"], full["score"]) == (1.0, 0.5, 0.5)
    assert memory["interval"] == pytest.approx((0.6097, 1.0), abs=1e-4)  # Wilson, not (1, 1)
    assert memory["difference"] is None and memory["found"] == 1.0 and bm25["found"] is None
    assert bm25["difference"]["mean"] == -0.5 and bm25["difference"]["pairs"] == 6
    low, high = bm25["difference"]["interval"]
    assert -0.95 < low < -0.5 < high < -0.05
    assert (full["asked"], full["refused"]) == (1, 5)
    assert full["difference"] == {"to": "memory", "pairs": 1, "mean": -0.5, "interval": None}
    assert memory["first_answer_seconds"] == 2.5
    assert memory["first_token_seconds"] == 3.0
    assert bm25["kinds"] == {
        "k0": {"score": 2 / 3, "asked": 3},
        "k1": {"score": 1 / 3, "asked": 3},
    }
    assert [one["score"] for one in summarise(ROWS, "f1")] == [0.25, 0.25, 0.25]
    with pytest.raises(EvaluationError, match="one of contains, exact, f1 expected, got 'best'"):
        summarise(ROWS, "best")


def test_many_documents_are_drawn_whole() -> None:
    mixed = [row("memory", 10 * d + n, float(d % 2), f"d{d}") for d in range(12) for n in range(10)]
    [apart] = summarise(mixed)
    [together] = summarise([{**one, "document": "a"} for one in mixed])
    assert (apart["drawn"], together["drawn"]) == ("documents", "questions")
    widths = [one["interval"][1] - one["interval"][0] for one in (apart, together)]
    assert widths[0] > 2 * widths[1]


class Page(HTMLParser):
    """Notes tags that are open, attributes that load something, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.said: list[str] = []
        self.tags: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loads += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "xlink:href")
        ]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_the_page_stands_alone_and_shows_the_rows(tmp_path: Path) -> None:
    path = Evaluation(ROWS).write(tmp_path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.loads == []
    assert "@import" not in text and "url(" not in text and "script" not in page.tags
    assert page.tags["svg"] == 3 and page.tags["details"] == 6
    assert "prefers-color-scheme: dark" in text
    said = " ".join(page.said)
    assert "Is 1 < 3?" in said and "<b>17</b>" in said, "what people wrote is shown as it is"
    for wanted in ("too long", "-50 [", "6", "1 of 6", "blocks = 2"):
        assert wanted in said
    assert rows.load(tmp_path / "summary.jsonl")[0]["system"] == "memory"
    assert len(rows.load(tmp_path / "answers.jsonl")) == len(ROWS)


def test_a_page_without_memory_or_answers_is_one_too() -> None:
    alone = Page(Evaluation([row("window", 0, 1.0)]).report())
    assert alone.tags["svg"] == 2
    assert "svg" not in Page(Evaluation([row("full-context", 0, None)]).report()).tags
