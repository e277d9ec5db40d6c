"""Where something breaks half-way."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import Figure, Row, in_words, newest, rows, told

DOCUMENT = "docs/halfway.md"
OPERATIONS = ("d575329a", "321e6270", "36216911")
"""The runs of random operations that the table counts: from sequence 0, 1,700 and 1,910 on."""
WRONG = ("foreign", "lost", "resurrected", "slots", "crash")


def total(found: list[Row], *fields: str) -> Figure:
    return Figure(sum(row[field] for row in found for field in fields))


def held() -> Iterator[str]:
    lines = rows("every_line.jsonl")
    last = [row for row in lines if row.date == lines[-1].date]
    told(not total(last, "failures"), "none of the last points failed")
    yield (
        f"an exception at every line: {Figure(len({row.operation for row in lines}))} operations "
        "broken off"
    )
    yield (
        f"| {total(lines, 'points'):,} points | {total(lines, 'failures')}: a hook left on a "
        f"layer, mended since; none of the last {total(last, 'points'):,} |"
    )
    kills = rows("kills.jsonl")
    wrong = total(kills, "open", "state", "load", "forgotten", "left", "refused")
    yield f"| {total(kills, 'kills')} kills | {wrong} |"
    hostile = rows("hostile.jsonl")
    yield f"| {total(hostile, 'inputs'):,} inputs | {total(hostile, 'failures')} |"
    yield from operations()
    soak = newest("soak.jsonl")
    for name in ("threads", "descriptors"):
        told(soak[f"{name}_last_to_first"] == 1, f"as many {name} at the end")
    yield (
        f"the process takes {soak.resident_bytes_last_to_first:.2f} of what it took when the last "
        "tier was full"
    )
    yield f"| {soak.tokens:,} tokens, {soak.faults} failures | {Figure(len(soak.wrong))} |"
    versions = newest("versions.jsonl", run="a4ac3735")
    yield f"alternating: decode {versions.decode.ratio.p50:.3f}, read {versions.read.ratio.p50:.3f}"
    yield f"| {versions.rounds} rounds |"


def operations() -> Iterator[str]:
    first, *others = (newest("operations.jsonl", run=run) for run in OPERATIONS)
    every = [first, *others]
    told(not total(every, *WRONG), "nothing foreign, lost or resurrected")
    told(total(every, "refused") == 1, "one forward was refused")
    yield (
        f"| {total(every, 'operations'):,} operations (rows of sequences 0 to "
        f"{first.sequences - 1:,} and 1,700 to {Figure(1909 + others[1].sequences):,}) |"
    )
    rest = rows("operations.jsonl", lambda row: row.run not in OPERATIONS)
    yield (
        f"rows of random operations, {total(rest, 'operations'):,} in all, have "
        f"{in_words(total(rest, *WRONG, 'refused'))} failing sequences"
    )
