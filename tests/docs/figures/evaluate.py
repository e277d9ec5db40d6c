"""Does it pay for your texts?"""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import between, newest, told

DOCUMENT = "docs/evaluate.md"
SYSTEMS = {"window of 512": "window", "full context": "full-context", "BM25": "bm25"}

TOLD = {"needle": 1, "multi-key": 1, "multi-query": 0.75, "conversation": 0.5, "common words": 0}
"""Shares that the page tells in words, by kinds of questions."""


def held() -> Iterator[str]:
    for name, system in SYSTEMS.items():
        row = newest("quick.jsonl", system=system, seed=0)
        more = row.difference
        low, high = more.interval
        yield (
            f"| {name} | {row.score:%} {between(row.interval)} | {more.mean:%} [{low:%}, "
            f"{high:{'+%' if high > 0 else '%'}}] | {row.found:%} |"
        )
    memory = newest("quick.jsonl", system="memory", seed=0)
    yield f"| **memory** | {memory.score:%} {between(memory.interval)} | | {memory.found:%} |"
    kinds = memory.kinds
    for kind, share in TOLD.items():
        told(kinds[kind].score == share, f"what is answered of {kind}")
    yield (
        f"of several values of one name {kinds['multi-value'].score:%} %, of variables "
        f"{kinds['variables'].score:%} %"
    )
