"""What rows say of each system: scores with intervals, differences, what was found, seconds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import fmean, median
from typing import Any

from cmr.errors import EvaluationError
from cmr.evaluation.judging import JUDGES
from cmr.evaluation.rows import Row
from cmr.evaluation.statistics import clustered, minus, wilson

ENOUGH = 10
"""Documents from which on intervals draw whole documents; of fewer they draw questions."""


def summarise(
    rows: Sequence[Row], judged: str = "contains", beside: str = "memory"
) -> list[dict[str, Any]]:
    """One row a system, in the order of the rows.

    Args:
        rows: of an `Evaluation`.
        judged: which of `JUDGES` is the score.
        beside: the system that the others are compared with.

    Returns:
        `system`; `asked` (questions that it could be asked) and `refused`; `score` with its 95 %
        `interval`; the means of all `JUDGES`; `found` (None without evidence);
        `shown_tokens` in the mean; `first_answer_seconds` (the median over documents: until the
        first token of the first reply, reading the document included); `first_token_seconds` and
        `seconds` of a reply (medians); `kinds` (score and questions of each); `difference` of the
        score to `beside` on the questions that both were asked, with its `interval` (None where
        all pairs differ by the same), None for `beside` itself. Intervals are bootstraps that draw
        whole documents where there are at least ten, else questions, and of differences pairs;
        `drawn` says which. Of scores that are all 0 or all 1, or 0 and 1 where questions are drawn,
        the interval is Wilson's: a bootstrap would take six right answers of six for certain.

    Raises:
        EvaluationError: `judged` is none of `JUDGES`.
    """
    if judged not in JUDGES:
        raise EvaluationError(f"judged: one of {', '.join(JUDGES)} expected, got {judged!r}")
    systems = dict.fromkeys(row["system"] for row in rows)
    by_system = {name: [row for row in rows if row["system"] == name] for name in systems}
    return [_of(by_system[name], by_system.get(beside, []), judged) for name in by_system]


def _of(mine: Sequence[Row], others: Sequence[Row], judged: str) -> dict[str, Any]:
    told = [row for row in mine if row["reply"] is not None]
    out: dict[str, Any] = {
        "system": mine[0]["system"], "judged": judged,
        "asked": len(told), "refused": len(mine) - len(told),
    }  # fmt: skip
    if not told:
        return {**out, "why": mine[0]["why"]}
    drawn, groups = _drawn(told)
    scores = [row[judged] for row in told]
    # Whoever asks first waits for the reading, too; the last of the reversed rows stays.
    first = {row["document"]: row for row in reversed(told)}.values()
    found = [row["found"] for row in told if row["found"] is not None]
    kinds = dict.fromkeys(row["kind"] for row in told)
    out |= {
        "score": fmean(scores),
        "interval": _interval(scores, drawn, groups),
        "drawn": drawn,
        **{name: fmean(row[name] for row in told) for name in JUDGES},
        "found": fmean(found) if found else None,
        "shown_tokens": fmean(row["shown_tokens"] for row in told),
        "first_answer_seconds": median(
            row["prepare_seconds"] + row["first_token_seconds"] for row in first
        ),
        "first_token_seconds": median(row["first_token_seconds"] for row in told),
        "seconds": median(row["seconds"] for row in told),
        "kinds": {
            kind: {"score": fmean(of), "asked": len(of)}
            for kind in kinds
            if (of := [row[judged] for row in told if row["kind"] == kind])
        },
        "difference": _difference(told, others, judged),
    }
    return out


def _interval(
    scores: Sequence[float], drawn: str, groups: Sequence[Hashable]
) -> tuple[float, float]:
    same = len(set(scores)) == 1
    if set(scores) <= {0.0, 1.0} and (drawn == "questions" or same):
        return wilson(round(sum(scores)), len(scores))
    return clustered(scores, groups)


def _difference(mine: Sequence[Row], others: Sequence[Row], judged: str) -> dict[str, Any] | None:
    theirs = {row["question"]: row for row in others if row["reply"] is not None}
    both = [row for row in mine if row["question"] in theirs]
    if not both or mine[0]["system"] == others[0]["system"]:
        return None
    _, groups = _drawn(both)
    other = [theirs[row["question"]][judged] for row in both]
    scores = [row[judged] for row in both]
    mean, ends = minus(scores, other, groups)
    # Pairs that all differ by the same say nothing of how far others would.
    varied = len({a - b for a, b in zip(scores, other, strict=True)}) > 1
    interval = ends if varied else None
    return {"to": others[0]["system"], "pairs": len(both), "mean": mean, "interval": interval}


def _drawn(rows: Sequence[Row]) -> tuple[str, list[Hashable]]:
    """What intervals draw, and which one each row belongs to."""
    # Questions about one document go wrong together: many of them are not many observations.
    documents: list[Hashable] = [row["document"] for row in rows]
    if len(set(documents)) >= ENOUGH:
        return "documents", documents
    return "questions", [row["question"] for row in rows]
