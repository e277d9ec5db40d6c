"""Does it pay for your texts?"""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import between, newest

DOCUMENT = "docs/evaluate.md"
SYSTEMS = {"window of 512": "window", "full context": "full-context", "BM25": "bm25"}


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
    assert (
        kinds["needle"].score == kinds["multi-key"].score == 1 and kinds["common words"].score == 0
    )
    assert kinds["multi-query"].score == 0.75 and kinds["conversation"].score == 0.5
    yield (
        f"of several values of one name {kinds['multi-value'].score:%} %, of variables "
        f"{kinds['variables'].score:%} %"
    )
