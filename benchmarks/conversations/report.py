"""Summary rows of conversations, from what was found for each question.

Of several runs the systems are put together, question by question: what memory found at one commit
beside what text retrievers found, or memory found before. `RUN=NAME` calls a run's memory NAME.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from benchmarks.conversations.locomo import CATEGORIES
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run
from benchmarks.shared.stats import ratio
from benchmarks.texts.everyday import PLACES
from cmr.evaluation.statistics import clustered, minus

FORMS = ("bare", *PLACES)
"""How a question is asked: alone, or inside everyday talk that stands in these places."""
CONDITIONS = ("run", "date", "commit", "command", "model", "calibrated", "settings")
"""Of the runs that are put together, in the row."""
Rows = list[dict[str, Any]]


def summaries(details: Rows) -> Rows:
    """A row for each system and form, and for all wrapped ones together; prints a table.

    Args:
        details: a row a question, as `measure` makes them.

    Returns:
        Rows with `found` (the mean share of the evidence), its interval, `by_category`, and the
        `tokens` shown in the mean; for a memory how much `more` it found than each other; for
        wrapped questions the share of what the bare ones found (`of_bare`), and what was found with
        (`marked`) and without (`unmarked`) a question mark in the message.
    """
    forms = [form for form in FORMS if form in details[0]]
    systems = [name for name in details[0][forms[0]] if name != "marks"]
    groups: dict[str, Callable[[str], bool]] = {
        form: lambda other, form=form: other == form for form in forms
    }
    if len(forms) > 1:
        groups["wrapped"] = lambda other: other != "bare"
    out = []
    for group, belongs in groups.items():
        pairs = [(row, row[form]) for row in details for form in forms if belongs(form)]
        for system in systems:
            out.append(_summary(system, group, pairs, systems))
            print(_line(out[-1]), flush=True)
    return out


def _summary(system: str, group: str, pairs: list[Any], systems: list[str]) -> dict[str, Any]:
    asked = [(row["conversation"], row["question"]) for row, _ in pairs]
    found = [one[system][0] for _, one in pairs]
    out: dict[str, Any] = {
        "system": system, "form": group, "questions": len(set(asked)), "asked": len(pairs),
        "found": round(fmean(found), 4), "interval": _rounded(clustered(found, asked)),
        "tokens": round(fmean(one[system][1] for _, one in pairs), 1),
    }  # fmt: skip
    out["by_category"] = {}
    for number, name in CATEGORIES.items():
        of = [i for i, (row, _) in enumerate(pairs) if row["category"] == number]
        if of:
            values, who = [found[i] for i in of], [asked[i] for i in of]
            out["by_category"][name] = {
                "asked": len(of), "found": round(fmean(values), 4),
                "interval": _rounded(clustered(values, who)),
            }  # fmt: skip
    if system not in ("bm25", "dense"):
        out["against"] = {}
        for other in systems:
            if other != system:
                more, interval = minus(found, [one[other][0] for _, one in pairs], asked)
                out["against"][other] = {"more": round(more, 4), "interval": _rounded(interval)}
    if group != "bare":
        bare = [row["bare"][system][0] for row, _ in pairs]
        share, interval = ratio(found, bare, asked)
        out["of_bare"] = {"share": round(share, 4), "interval": _rounded(interval)}
        for name, marks in (("marked", True), ("unmarked", False)):
            values = [one[system][0] for _, one in pairs if one["marks"] is marks]
            if values:
                out[name] = {"asked": len(values), "found": round(fmean(values), 4)}
    return out


def together(runs: list[tuple[str, Rows]]) -> Rows:
    """The questions that all runs asked, with the systems of all; of the same system the last.

    Args:
        runs: what the run's memory is called from now on, and its detail rows.

    Raises:
        UsageError: the runs have no question in common, or wrapped it in other talk.
    """
    by_question = [
        (name, {(row["conversation"], row["question"]): row for row in details})
        for name, details in runs
    ]
    out = []
    for key, first in by_question[0][1].items():
        told = [(name, found[key]) for name, found in by_question if key in found]
        if len(told) < len(runs):
            continue
        row = {name: value for name, value in first.items() if name not in FORMS}
        for form in (form for form in FORMS if all(form in other for _, other in told)):
            if len({other[form]["marks"] for _, other in told}) > 1:
                raise UsageError("runs with the same everyday talk expected: their seeds differ")
            row[form] = {
                called if system == "memory" else system: found
                for called, other in told
                for system, found in other[form].items()
            }
        out.append(row)
    if not out:
        raise UsageError("runs that asked the same questions expected: they have none in common")
    return out


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(end, 4) for end in interval]


def _line(row: dict[str, Any]) -> str:
    low, high = (100 * end for end in row["interval"])
    said = f"{row['system']:7}{row['form']:8} {100 * row['found']:5.1f} % [{low:.0f}, {high:.0f}]"
    said += f" of {row['asked']}, {row['tokens']:.0f} tokens"
    said += "".join(f", {n} {100 * c['found']:.0f}" for n, c in row["by_category"].items())
    for other, more in row.get("against", {}).items():
        low, high = (100 * end for end in more["interval"])
        said += f", {100 * more['more']:+.1f} [{low:+.0f}, {high:+.0f}] to {other}"
    if "of_bare" in row:
        said += f", {row['of_bare']['share']:.2f} of bare"
    if "unmarked" in row:
        said += f", unmarked {100 * row['unmarked']['found']:.0f}"
    return said


def main(words: list[str] | None = None) -> None:
    """Puts runs together and appends the summary rows."""
    parser = Parser(f"{__doc__}\n\n{main.__doc__}")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="as the rows of a run say it")
    args = parser.parse_args(words)
    runs, measured = [], []
    for word in args.runs:
        name, _, called = word.partition("=")
        details = rows.of_runs("conversations_details", [name])
        if not details:
            raise UsageError(f"no rows of the run {name} in conversations_details.jsonl")
        runs.append((called or "memory", details))
        known = rows.of_runs("conversations", [name])[:1]
        measured += [{key: row[key] for key in CONDITIONS if key in row} for row in known]
    found = summaries(together(runs))
    head = {"run": rows.conditions()["run"], "runs": args.runs, "measured": measured}
    rows.append("conversations", *({**row, **head} for row in found))


if __name__ == "__main__":
    run(main)
