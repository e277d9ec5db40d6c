"""Summary rows and tables of the recall benchmark, from its detail rows."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run
from benchmarks.shared.stats import ratio
from benchmarks.texts.everyday import WRAPPED
from cmr.evaluation.statistics import clustered, share, wilson

Rows = list[dict[str, Any]]


def summarise(details: Rows, system: str) -> dict[str, Any]:
    """One system at one length: shares with intervals, by group and kind, and what was found."""
    mine = [r for r in details if r["system"] == system]
    hits = [float(r["right"]) for r in mine]
    facts = [r["fact"] for r in mine]
    row: dict[str, Any] = {
        "tokens": mine[0]["tokens"], "system": system, "n": len(mine), "right": int(sum(hits)),
        "share": mean(hits), "wilson": wilson(int(sum(hits)), len(hits)),
        "by_fact": clustered(hits, facts), "seconds": median(r["seconds"] for r in mine),
        "shown_tokens": mean(r.get("shown_tokens", 0) for r in mine),
    }  # fmt: skip
    row |= waiting(mine) | {k: mine[0][k] for k in ("kept_tokens", "kept_bytes") if k in mine[0]}
    for field in ("group", "kind", "wording"):
        values = sorted({r[field] for r in mine})
        row[field] = {
            str(v): [sum(r["right"] for r in mine if r[field] == v),
                     sum(1 for r in mine if r[field] == v)]
            for v in values
        }  # fmt: skip
    if "rank" in mine[0]:
        row["found_first"] = mean(r["rank"] == 1 for r in mine)
        row["found_first_two"] = mean(r["rank"] in (1, 2) for r in mine)
        row["found_first_two_wilson"] = wilson(sum(r["rank"] in (1, 2) for r in mine), len(mine))
        row["found"] = mean(r["rank"] is not None for r in mine)
        row["covered"] = mean(r["covered"] for r in mine)
        row["recalled_tokens"] = mean(r["recalled_tokens"] for r in mine)
        row["right_when_found"] = mean([r["right"] for r in mine if r["rank"]] or [0.0])
        row["against"] = {
            other: difference(mine, [r for r in details if r["system"] == other])
            for other in sorted({r["system"] for r in details} - {system})
        }
        ceiling = [r for r in details if r["system"] == "ceiling"]
        if ceiling and any(r["right"] for r in ceiling):
            row["of_ceiling"] = row["share"] / mean(float(r["right"]) for r in ceiling)
    bare = [r for r in details if r["system"] + WRAPPED == system]
    if any(r["right"] for r in bare):  # of nothing there is no share
        row["of_bare"] = of_bare(mine, bare)
    return row


def waiting(mine: Rows) -> dict[str, float]:
    """Median seconds to the first token of the first reply about a text, and of a further one."""
    timed = [r for r in mine if r.get("first_token_seconds") is not None]
    first = {r["fact"].rpartition("-")[0]: r for r in reversed(timed)}
    later = [r["first_token_seconds"] for r in timed if r not in first.values()]
    if not later:
        return {}
    return {
        "first_answer_seconds": median(
            r["prepare_seconds"] + r["first_token_seconds"] for r in first.values()
        ),
        "next_answer_seconds": median(later),
    }


def difference(mine: Rows, theirs: Rows) -> dict[str, Any]:
    """Paired difference on the questions that both were asked, clustered by fact."""
    other = {(r["fact"], r["wording"]): r["right"] for r in theirs}
    pairs = [(r, other[key]) for r in mine if (key := (r["fact"], r["wording"])) in other]
    values = [float(r["right"]) - float(o) for r, o in pairs]
    if not values:
        return {"n": 0}
    return {
        "n": len(values), "difference": mean(values),
        "interval": clustered(values, [r["fact"] for r, _ in pairs]),
        "only_memory": sum(v > 0 for v in values), "only_other": sum(v < 0 for v in values),
    }  # fmt: skip


def of_bare(mine: Rows, bare: Rows) -> dict[str, Any]:
    """What share of the right answers is left when the same questions are asked wrapped."""
    other = {(r["fact"], r["wording"]): float(r["right"]) for r in bare}
    pairs = [(r, other[key]) for r in mine if (key := (r["fact"], r["wording"])) in other]
    left, interval = ratio(
        [float(r["right"]) for r, _ in pairs], [o for _, o in pairs], [r["fact"] for r, _ in pairs]
    )
    return {"n": len(pairs), "share": left, "interval": interval}


def report(conditions: dict[str, Any], details: Rows, with_runs: list[str]) -> Rows:
    """Prints a table for each length and appends the summary rows; returns them."""
    from rich.console import Console
    from rich.table import Table

    own = {(r["tokens"], r["system"]) for r in details}
    earlier = rows.of_runs("recall_details", with_runs)
    every = details + [r for r in earlier if (r["tokens"], r["system"]) not in own]
    console, out = Console(width=118), []
    for tokens in sorted({r["tokens"] for r in details}):
        here = [r for r in every if r["tokens"] == tokens]
        names = list(dict.fromkeys(r["system"] for r in here))
        summaries = [summarise(here, s) for s in names]
        table = Table(title=f"documents of {tokens:,} tokens")
        for column in ("system", "right", "share [95 %]", "numbers", "names", "first",
                       "first two", "tokens", "first, s", "next, s"):  # fmt: skip
            table.add_column(column, justify="left" if column == "system" else "right")
        for s in summaries:
            group = {k: f"{a}/{b}" for k, (a, b) in s["group"].items()}
            found = [f"{100 * s[k]:.1f} %" if k in s else "" for k in
                     ("found_first", "found_first_two")]  # fmt: skip
            table.add_row(
                s["system"], f"{s['right']}/{s['n']}", share(s["right"], s["n"]),
                group.get("number", ""), group.get("name", ""), *found,
                f"{s.get('recalled_tokens', s['shown_tokens']):.0f}",
                *(f"{s[k]:.1f}" if k in s else "" for k in
                  ("first_answer_seconds", "next_answer_seconds")),
            )  # fmt: skip
        console.print(table)
        for s in summaries:
            for other, d in s.get("against", {}).items():
                if d["n"]:
                    low, high = d["interval"]
                    console.print(
                        f"  {s['system']} − {other}: {100 * d['difference']:+.1f} points "
                        f"[{100 * low:+.0f}, {100 * high:+.0f}] "
                        f"(+{d['only_memory']}/-{d['only_other']} of {d['n']})",
                        highlight=False, markup=False,
                    )  # fmt: skip
            if "of_ceiling" in s:
                said = f"  {s['system']} is {s['of_ceiling']:.2f} of the ceiling"
                console.print(said, highlight=False)
            if "of_bare" in s:
                low, high = s["of_bare"]["interval"]
                console.print(
                    f"  {s['system']} has {s['of_bare']['share']:.2f} [{low:.2f}, {high:.2f}] of "
                    "the bare answers",
                    highlight=False, markup=False,
                )  # fmt: skip
        out += [{**conditions, **s} for s in summaries]
    rows.append("recall", *out)
    return out


def main(words: list[str] | None = None) -> None:
    """Prints earlier runs together."""
    parser = Parser(f"{__doc__}\n\n{main.__doc__}")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="as the rows of a run say it")
    args = parser.parse_args(words)
    details = rows.of_runs("recall_details", args.runs)
    if not details:
        raise UsageError(f"no rows of the runs {', '.join(args.runs)} in recall_details.jsonl")
    known = rows.of_runs("recall", args.runs)
    last = known[-1] if known else {"run": args.runs[-1]}
    conditions = {k: last[k] for k in ("run", "date", "commit", "model") if k in last}
    report({**conditions, "runs": args.runs}, details, [])


if __name__ == "__main__":
    run(main)
