"""The picture of the tiers."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import newest

DOCUMENT = "docs/pictures/tiers.svg"


BEFORE = {"recent": "keys, values and index: read in place", "working": "copied once a search",
          "long_term": "run through the model again"}  # fmt: skip
"""What is written above the figure of each tier."""


def held() -> Iterator[str]:
    for tier, words in BEFORE.items():
        yield f"{words} {newest('tiers.jsonl', tier=tier).bytes_per_token:,.0f} bytes a token"
