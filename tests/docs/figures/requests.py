"""Whose request is this."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import Figure, in_words, newest

DOCUMENT = "docs/requests.md"
MODES = {"a thread a user": "threads", "asyncio tasks": "tasks", "generators in turns": "turns"}


def held() -> Iterator[str]:
    for name, mode in MODES.items():
        row = newest("stress.jsonl", mode=mode)
        cells = (
            f"{n:,}"
            for n in (row.operations, row.recalls, row.foreign, row.wrong, Figure(len(row.errors)))
        )
        yield f"| {name} | {' | '.join(cells)} |"
    yield f"{in_words(newest('stress.jsonl').users)} users beside a thread of upkeep"
    row = newest("fairness.jsonl")
    yield (
        f"While one thread reads {row.tokens:,} tokens with the real model, the 95th percentile of "
        f"another thread's decoding step is {row.beside_ms.p95:.0f} ms, {row.p95_more_ms:.0f} ms "
        f"more than alone; one window takes {row.window_ms.p50:.0f} to {row.window_ms.max:.0f} ms"
    )
    row = newest("versions.jsonl", run="c8a58441")
    decode, read = row.decode.ratio, row.read.ratio
    yield (
        f"a decoding step takes {decode.p50:.2f} times as long [{decode.p20:.2f} to "
        f"{decode.p80:.2f}] and reading {read.p50:.2f} times [{read.p20:.2f} to {read.p80:.2f}]"
    )
    yield f"../benchmarks/results/versions.jsonl), {row.rounds} rounds in turns"
