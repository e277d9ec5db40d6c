"""A GPU as a calculation: what the host takes is measured, and how often it waits is counted."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import Figure, newest
from tests.emulated.test_documented import BEYOND, OF_THE_MODEL, READING

DOCUMENT = "docs/gpu-model.md"
FORWARDS = {
    "step": "| a step that reads memory",
    "search": "| and searches, every 16th",
    "leaving": "| and lets blocks leave, every 32nd",
    "prompt": "| a prompt of 40 tokens",
}
"""What stands in front of the counts of a kind of forward."""


def held() -> Iterator[str]:
    yield f"beyond those of the model alone ({Figure(OF_THE_MODEL):,} in a step)"
    for kind, words in FORWARDS.items():
        bare, worded, waits = map(Figure, BEYOND[kind])
        yield f"{words} | {bare} | {worded} | {waits} |"
    read, waits = map(Figure, READING)
    yield f"| reading 4,000 tokens, all in all | {read:,} | {read:,} | {waits} |"
    new, old = (newest("host.jsonl", triton=version).us_a_layer for version in ("3.7.*", "3.9.*"))
    yield (
        f"{new.known:.0f} µs a layer in a window that has taken its shape, {new.grows:.0f} while "
        f"it grows by a token each step, {new.first:.0f} where nothing is known yet"
    )
    yield f"{old.known:.0f}, {old.grows:.0f} and {old.first:.0f} with 3.9"
