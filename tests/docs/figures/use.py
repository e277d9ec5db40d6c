"""Using it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import newest

DOCUMENT = "docs/use.md"


def held() -> Iterator[str]:
    above, file = (
        newest("tiers.jsonl", tier=tier).bytes_per_token for tier in ("recent", "long_term")
    )
    yield f"in a file where a token takes 1/{above / file:.0f} of the room"
