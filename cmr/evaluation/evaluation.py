"""What an evaluation found: judged rows, and what they say of each system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmr.evaluation import rows
from cmr.evaluation.documents import Document
from cmr.evaluation.judging import judge, share_found
from cmr.evaluation.questions import Question
from cmr.evaluation.report.page import page
from cmr.evaluation.rows import Row
from cmr.evaluation.summary import summarise


@dataclass(frozen=True)
class Evaluation:
    """Rows, one a system and question: `reply`, its scores, seconds, what was shown.

    A row has `system`, `question` (its number), `asked`, `expected`, `kind`, `document`,
    `document_tokens`; `reply` (None with `why` where it could not be asked); the scores `contains`,
    `exact` and `f1`; `found` (the share of the evidence that was shown; None without evidence, or
    where each head sees other tokens); `shown` (tokens [start, end) of the document; None there),
    `shown_tokens`, of a press also `kept_bytes`; `prepare_seconds` (reading or
    indexing the document), `first_token_seconds` and `seconds` (from the question on); and all
    conditions.
    """

    rows: list[Row]
    beside: str = "memory"
    """The system that the others are compared with."""

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        documents: Mapping[str, Document],
        questions: Sequence[Question],
        replies: Sequence[Row],
        beside: str,
    ) -> Evaluation:
        """Judges replies by the questions, and what was shown by their evidence."""
        evidence = [
            documents[question.document].spans_of(tokenizer, question.evidence)
            for question in questions
        ]
        out = []
        for row in replies:
            question, spans = questions[row["question"]], evidence[row["question"]]
            told: Row = {"kind": question.kind, "expected": question.answers or question.parts}
            if row["reply"] is not None:
                told |= judge(row["reply"], question)
                told["found"] = _found(spans, row["shown"])
            out.append({**row, **told})
        return cls(out, beside)

    def summary(self, judged: str = "contains") -> list[Row]:
        """What the rows say of each system; see `summarise`."""
        return summarise(self.rows, judged, self.beside)

    def report(self, judged: str = "contains") -> str:
        """One self-contained page of HTML with tables and plots of the rows."""
        return page(self.rows, judged, self.beside)

    def write(self, folder: str | Path, judged: str = "contains") -> Path:
        """Writes `answers.jsonl`, `summary.jsonl` and `report.html` into a folder; gives the last.

        What an earlier evaluation wrote there is replaced.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        rows.write(place / "answers.jsonl", self.rows)
        rows.write(place / "summary.jsonl", self.summary(judged))
        (place / "report.html").write_text(self.report(judged), encoding="utf-8")
        return place / "report.html"


def _found(evidence: list[tuple[int, int]], shown: list[tuple[int, int]] | None) -> float | None:
    return share_found(evidence, shown) if evidence and shown is not None else None
