"""The examples: what the three assistants answered."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import rows

DOCUMENT = "examples/README.md"


def held() -> Iterator[str]:
    answered = {
        (row.assistant, row.way): row for row in rows("assistants.jsonl")
    }  # the newest of each
    for row in answered.values():
        yield (
            f"| {row.assistant.replace('_', ' ')} | {row.way} | {row.n} | {row.right} | "
            f"{row.without} |"
        )
