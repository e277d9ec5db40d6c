"""Steering and watching."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import Figure, in_words, newest

DOCUMENT = "docs/steering.md"
PHASES = ("begin", "other questions", "other target")


def held() -> Iterator[str]:
    yield from targets()
    yield from batches()
    yield from prefetching()
    yield from upkeep()
    yield from watching()


def targets() -> Iterator[str]:
    rows = {
        target: [
            newest("steering.jsonl", part="thresholds", target=target, phase=phase)
            for phase in PHASES
        ]
        for target in ("recall_rate", "bytes", "latency")
    }
    rate = rows["recall_rate"]
    yield f"| `recall_rate` {rate[0].wanted}, then {rate[2].wanted} |"
    for target, phases in rows.items():
        cells = (f"{row.off:+.1%} %" if row.off else f"{row.off:.1%} %" for row in phases)
        line = " | ".join(cells)
        yield {
            "recall_rate": f"then 0.3 | {line} |",
            "bytes": f"then 0.3 of it | {line} |\n| `latency`",
            "latency": f"between no recall and recall, then 0.3 of it | {line} |",
        }[target]
    every = [row for phases in rows.values() for row in phases]
    yield f"the mean of the {every[0].requests} requests"
    swings = [row.swing for row in every]
    moves = [row.threshold_sd / row.certainty_sd for row in every]
    yield f"at 12 requests or more was {min(swings):.1f} to {max(swings):.2f}, where"
    yield f"by {min(moves):.1f} to {max(moves):.1f} of the standard deviation of the certainties"


def batches() -> Iterator[str]:
    mixed, equal = (
        newest("steering.jsonl", part="batching", batch=batch) for batch in ("mixed", "equal")
    )
    yield (
        f"Forwards of {in_words(len(mixed.lengths))} rows of {min(mixed.lengths)} to "
        f"{max(mixed.lengths)} tokens took {mixed.off_over_on.p50:.2f} times the processor time "
        f"without it, and of {in_words(len(equal.lengths))} rows of {equal.lengths[0]} tokens "
        f"{equal.off_over_on.p50:.3f} times (median of {in_words(equal.rounds)} neighbours"
    )


def prefetching() -> Iterator[str]:
    row = newest("steering.jsonl", part="prefetch")
    yield (
        f"people with {row.stored_each:,} tokens each took turns to ask {in_words(row.turns_each)} "
        f"questions, with {row.pause} seconds between two"
    )
    yield (
        f"be read {row.ready.on:%} % were there ({row.ready.off:%} % without it), finding and "
        f"reading them took {row.recall_on_over_off.p50:.2f} times the seconds, and the request "
        f"{row.request_on_over_off.p50:.2f} times the processor time of its thread (medians of "
        f"{row.requests} requests)"
    )


def upkeep() -> Iterator[str]:
    seldom = newest("steering.jsonl", part="upkeep", upkeep_s=0.5)
    often = newest("steering.jsonl", lambda row: "upkeep_s" not in row, part="upkeep")
    yield f"requests {seldom.between_s} seconds apart"
    yield (
        f"its wait for the memory was {seldom.p95_on_over_off.own:.2f} times that without; by the "
        f"clock of a busy machine {seldom.p95_on_over_off.wall:.2f} times. With upkeep twenty "
        f"times a second it was {often.p95_on_over_off.own:.2f} and "
        f"{often.p95_on_over_off.wall:.2f}"
    )


def watching() -> Iterator[str]:
    row = newest("watching.jsonl")
    on, off = (row.calls_a_step[name] for name in ("on", "off"))
    more = Figure((on.python + on.c) / (off.python + off.c) - 1)
    yield f"whether somebody does, {row.question_ns:.0f} ns each"
    yield (
        f"the small model calls {more:.1%} % more functions and reads a clock {on.clocks:.0f} "
        f"times. Its processor time was {row.on_over_off.p50:.3f} times that without (median of "
        f"{row.rounds} neighbours on a busy machine, whose own spread from "
        f"{row.on_over_off.p20:.2f} to {row.on_over_off.p80:.2f} hides"
    )
