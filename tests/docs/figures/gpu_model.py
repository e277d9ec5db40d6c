"""A GPU as a calculation: what the host takes is measured, and how often it waits is counted."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import Figure, newest, told
from tests.emulated.test_counts import BARS, BARS_OF_WORDS, READING

DOCUMENT = "docs/gpu-model.md"
FORWARDS = {
    "step": "46 (instead of",
    "search": "6 more, with a tokenizer",
    "leaving": "3 more",
    "prompt": "as a search",
}
"""What stands behind the waits of a kind of forward."""


def held() -> Iterator[str]:
    for kind, words in FORWARDS.items():
        told(BARS[kind][1] == BARS_OF_WORDS[kind][1], "as many waits with a tokenizer")
        yield f"| {Figure(BARS[kind][1])} | {words}"
    yield f"| {Figure(READING[1])} | 33 | A test holds such counts"
    new, old = (newest("host.jsonl", triton=version).us_a_layer for version in ("3.7.*", "3.9.*"))
    yield (
        f"{new.known:.0f} µs a layer in a window that has taken its shape, {new.grows:.0f} while "
        f"it grows by a token each step, {new.first:.0f} where nothing is known yet"
    )
    yield f"{old.known:.0f}, {old.grows:.0f} and {old.first:.0f} with 3.9"
