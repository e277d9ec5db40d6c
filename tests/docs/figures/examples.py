"""The examples: what the three assistants answered."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import rows

DOCUMENT = "examples/README.md"


def held() -> Iterator[str]:
    answered = {
        (row.assistant, row.way, row.model): row for row in rows("assistants.jsonl")
    }  # the newest of each
    for row in answered.values():
        model = "Qwen2.5" if row.model.startswith("qwen") else "SmolLM2"
        yield (
            f"| {row.assistant.replace('_', ' ')} | {row.way} | {model} | {row.n} | {row.right} | "
            f"{row.without} |"
        )
