"""What a run has found, in words, and what to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
SHOWN = 5
"""Names in a list; the rows have all of them."""
FAR = 3.0
"""Times its floor from which on an operation is worth a look."""
WORST = 1.5
"""Times the mean from which on the worst step is worth a look."""


def lines(rows: Sequence[Row]) -> list[str]:
    """The summary of a run, a paragraph a line.

    Args:
        rows: of the run, in their order.
    """
    if not rows:
        return ["Nothing was measured."]
    times = (_small,) if rows[0]["tiny"] else (_operations, _steps, _reading)
    return [
        _where(rows),
        *(line for say in (_checks, _spills, *times, _left_out) for line in say(rows)),
    ]


def _where(rows: Sequence[Row]) -> str:
    first = rows[0]
    if first["device"] != "cuda":
        return (
            f"Nothing here ran on a GPU: {first['device_name']}, {first['backend']}. "
            "No figure above is one of a GPU."
        )
    return f"Ran on {first['device_name']}, kernels: {first['backend']}."


def _checks(rows: Sequence[Row]) -> Iterable[str]:
    own = [row for row in _of("checks", rows) if row["outcome"] != "left out"]
    if not own:
        return
    count = Counter(row["outcome"] for row in own)
    bad = [row["job"] for row in own if row["outcome"] in ("failed", "died")]
    yield f"Checks: {count['ok']} of {len(own)} hold, {len(bad)} do not."
    if bad:
        yield (
            f"Look first at what does not hold, no speed counts before: {_named(bad)}. "
            "`pytest tests/gpu -m gpu -k '...'` runs one alone, CUDA_LAUNCH_BLOCKING=1 and "
            "`compute-sanitizer` say where."
        )


def _spills(rows: Sequence[Row]) -> Iterable[str]:
    own = _of("compile", rows)
    spilled = [row["job"] for row in own if row.get("spills")]
    failed = [row["job"] for row in own if row["outcome"] == "failed"]
    if spilled:
        yield f"These spill registers with this Triton: {_named(spilled)}."
    if failed:
        yield f"These do not compile: {_named(failed)}."


def _small(rows: Sequence[Row]) -> Iterable[str]:
    done = Counter(row["part"] for row in rows if row["outcome"] == "ok")
    yield (
        "At small sizes times say nothing: "
        f"{done['operations']} operations agree with PyTorch, {done['step']} kinds of steps and "
        f"{done['reading']} reading ran."
    )


def _operations(rows: Sequence[Row]) -> Iterable[str]:
    own = [row for row in _of("operations", rows) if row["outcome"] == "ok"]
    if not own:
        return
    far = sorted(own, key=lambda row: -row["times_floor"])
    slower = [row["job"] for row in own if row["torch_over_cmr"] < 1]
    worst = [f"{row['job']} ({row['times_floor']:.1f})" for row in far if row["times_floor"] > FAR]
    yield (
        f"Operations: {len(own)} timed with a cold cache; {len(worst)} take more than {FAR:.0f} "
        f"times their floor{': ' + _named(worst) if worst else ''}; PyTorch is faster in "
        f"{len(slower)}{': ' + _named(slower) if slower else ''}."
    )
    if worst and own[0]["device"] == "cuda":
        yield "Look at the furthest with Nsight Compute; docs/profiling.md has the command."


def _steps(rows: Sequence[Row]) -> Iterable[str]:
    own = [row for row in _of("step", rows) if row["outcome"] == "ok" and "mean_ms" in row]
    alone = {(row["model"], row["batch"]): row for row in own if row["stored"] is None}
    said = []
    for row in own:
        base = alone.get((row["model"], row["batch"]))
        if row["stored"] and base:
            ratio = row["mean_ms"] / base["mean_ms"]
            said.append(
                f"{row['model']} with {row['stored']:,} stored, batch {row['batch']}: {ratio:.2f}"
            )
    if said:
        yield f"Steps over those of the model alone: {'; '.join(said)}."
    uneven = [row["job"] for row in own if row["worst_ms"] > WORST * row["mean_ms"]]
    if uneven:
        yield f"The worst step is more than {WORST} times the mean in: {_named(uneven)}."
    waits = [row["job"] for row in _of("step", rows) if row.get("of_a_step", {}).get("waits")]
    if waits:
        yield (
            f"The host waits for the device in a plain step: {_named(waits)}. "
            "torch.cuda.set_sync_debug_mode('error') says where."
        )


def _reading(rows: Sequence[Row]) -> Iterable[str]:
    own = [row for row in _of("reading", rows) if row["outcome"] == "ok"]
    said = [f"{row['model']} at {row['ratio']['p50']:.2f} of its own forward" for row in own]
    if said:
        yield f"Reading: {', '.join(said)}."


def _left_out(rows: Sequence[Row]) -> Iterable[str]:
    said = Counter(
        f"{row['part']}: {row.get('said', '')}"
        for row in rows
        if row["outcome"] in ("left out", "not here", "died") and row["part"] != "checks"
    )
    said += Counter(
        f"checks: {row.get('said', '')}"
        for row in _of("checks", rows)
        if row["outcome"] in ("left out", "died")
    )
    if said:
        yield f"Not measured: {'; '.join(said)}."


def _of(part: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def _named(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
