"""The page: what was measured, how the systems compare, and every reply."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from cmr.evaluation.report.plots import bars, differences, points, waiting
from cmr.evaluation.rows import Row
from cmr.evaluation.summary import summarise

JUDGED = {
    "contains": "an accepted answer stands in the reply (of several parts the share that does)",
    "exact": "the reply is an accepted answer and nothing else",
    "f1": "the shared words of the reply and the accepted answer that fits best (token F1)",
}
CONDITIONS = (
    "model", "parameters", "dtype", "device", "cpu", "threads", "torch", "transformers", "cmr",
    "new_tokens", "window",
)  # fmt: skip


def page(rows: Sequence[Row], judged: str, mine: str) -> str:
    """One file of HTML: it loads nothing from elsewhere, and follows the reader's light or dark."""
    # In the page itself: a report is one file that can be sent around.
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    summary = summarise(rows, judged, mine)
    told = [row for row in summary if row["asked"]]
    parts = [_head(rows, judged), _systems(summary, mine)]
    if told:
        parts.append(_section("Score", f"{JUDGED[judged].capitalize()}. Lines are 95 % intervals.",
                              bars(told, mine)))  # fmt: skip
    difference = differences(told, mine)
    if difference:
        about = (
            f"Points more or less than {mine} on the same questions, with 95 % intervals of the "
            "pairs, where these do not all differ by the same. An interval that leaves out zero is "
            "a difference that more questions of this kind would likely show, too."
        )
        parts.append(_section(f"Difference to {mine}", about, difference))
    if told:
        about = (
            "Large dots: until the first token of the first reply, reading the document included. "
            "Small dots: until the first token of each later reply. Medians."
        )
        parts.append(_section("Waiting", about, waiting(told, mine)))
    kinds = dict.fromkeys(row["kind"] for row in rows)
    if len(kinds) > 1:
        about = "Score, and in brackets the number of questions."
        parts.append(_section("By kind of question", about, _kinds(told, list(kinds))))
    parts += [_questions(rows, judged, mine), _conditions(rows)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>cmr evaluate</title><style>{style}</style></head><body><main>"
        f"{''.join(parts)}</main></body></html>\n"
    )


def _head(rows: Sequence[Row], judged: str) -> str:
    questions = len({row["question"] for row in rows})
    documents = {row["document"]: row["document_tokens"] for row in rows}
    lengths = sorted(documents.values())
    long = f"{lengths[0]:,} to {lengths[-1]:,}" if len(lengths) > 1 else f"{lengths[0]:,}"
    return (
        "<h1>What is answered right, and from what</h1>"
        f'<p class="soft">{escape(str(rows[0]["model"]))}. Questions: {questions:,}. Documents: '
        f"{len(documents):,}, of {long} tokens. A reply is judged by <b>{judged}</b>: "
        f"{JUDGED[judged]}.</p>"
    )


def _section(title: str, about: str, content: str) -> str:
    return (
        f'<section><h2>{escape(title)}</h2><p class="soft">{escape(about)}</p>'
        f'<div class="wide">{content}</div></section>'
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in line)
        + "</tr>"
        for line in lines
    )  # fmt: skip
    return f'<table class="{kind}"><tr>{top}</tr>{body}</table>'


def _name(system: str, mine: str) -> str:
    return f'<span class="mine">{escape(system)}</span>' if system == mine else escape(system)


def _systems(summary: Sequence[dict[str, Any]], mine: str) -> str:
    head = ["system", "score, %", "95 % interval", "questions", f"to {mine}", "evidence shown, %",
            "tokens shown", "first answer, s", "next token, s"]  # fmt: skip
    lines = []
    for row in summary:
        name = _name(row["system"], mine)
        if not row["asked"]:
            lines.append([name, "–", f'<td colspan="7">{escape(row["why"])}</td>'])
            continue
        low, high = (100 * end for end in row["interval"])
        found = "–" if row["found"] is None else f"{100 * row['found']:.0f}"
        asked = str(row["asked"]) + (f" of {row['asked'] + row['refused']}" * bool(row["refused"]))
        lines.append([
            name, f"<b>{100 * row['score']:.0f}</b>", f"{low:.0f} – {high:.0f}", asked,
            _points(row["difference"]), found, f"{row['shown_tokens']:,.0f}",
            f"{row['first_answer_seconds']:.1f}", f"{row['first_token_seconds']:.2f}",
        ])  # fmt: skip
    return f'<section><div class="wide">{_table(head, lines)}</div></section>'


def _points(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    mean, interval = points(difference["mean"]), difference["interval"]
    return f"{mean} [{', '.join(map(points, interval))}]" if interval else f"{mean}, all pairs"


def _kinds(summary: Sequence[dict[str, Any]], kinds: list[str]) -> str:
    lines = []
    for kind in kinds:
        line = [escape(kind or "(none)")]
        for row in summary:
            of = row["kinds"].get(kind)
            if of is None:
                line.append("–")
                continue
            shade = f"background: rgba(var(--shade), {0.06 + 0.44 * of['score']:.2f})"
            line.append(
                f'<td style="{shade}">{100 * of["score"]:.0f} % '
                f'<span class="soft">({of["asked"]})</span></td>'
            )
        lines.append(line)
    return _table(["", *(row["system"] for row in summary)], lines, "heat")


def _questions(rows: Sequence[Row], judged: str, mine: str) -> str:
    # Folded, so that thousands of replies are no wall of text.
    by_question: dict[int, list[Row]] = {}
    for row in rows:
        by_question.setdefault(row["question"], []).append(row)
    blocks = []
    for of in by_question.values():
        marks = "".join(_mark(row, judged) for row in of)
        expected = escape(" · ".join(of[0]["expected"]))
        lines = [
            [_name(row["system"], mine), _mark(row, judged), _reply(row), _seen(row)] for row in of
        ]
        blocks.append(
            f'<details><summary><span class="text">{escape(of[0]["asked"])}</span>'
            f'<span class="marks">{marks}</span></summary><p class="soft">expected: {expected}; '
            f"{escape(of[0]['document'])}</p>"
            f"{_table(['', '', 'reply', 'evidence'], lines)}</details>"
        )
    order = ", ".join(dict.fromkeys(row["system"] for row in rows))
    return _section("Every reply", f"Marks stand for {order}.", "".join(blocks))


def _mark(row: Row, judged: str) -> str:
    """A sign with its words: colours alone say nothing to some readers."""
    if row["reply"] is None:
        sign, kind, said = "–", "soft", "not asked"
    elif row[judged] >= 1:
        sign, kind, said = "✓", "right", "right"
    elif row[judged] > 0:
        sign, kind, said = "◐", "soft", f"{100 * row[judged]:.0f} %"
    else:
        sign, kind, said = "✗", "wrong", "wrong"
    return f'<span class="{kind}" title="{escape(row["system"])}: {said}">{sign}</span>'


def _reply(row: Row) -> str:
    return escape(row["why"] if row["reply"] is None else row["reply"] or "(nothing)")


def _seen(row: Row) -> str:
    if row.get("found") is None:
        return ""
    return {0.0: "not shown", 1.0: "shown"}.get(row["found"], f"{100 * row['found']:.0f} % shown")


def _conditions(rows: Sequence[Row]) -> str:
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(rows[0][name]))}</dd>" for name in CONDITIONS
    )
    for name in dict.fromkeys(row["system"] for row in rows):
        # All rows of a system were made with the same settings: they are part of the key.
        settings = next(row["settings"] for row in rows if row["system"] == name)
        if settings and name not in ("window", "full-context"):
            said = ", ".join(f"{key} = {value}" for key, value in settings.items())
            items += f"<dt>settings of {escape(name)}</dt><dd>{escape(said)}</dd>"
    return f"<section><h2>Conditions</h2><dl>{items}</dl></section>"


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
