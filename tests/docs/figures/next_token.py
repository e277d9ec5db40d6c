"""Next-token memory."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.figures.measured import readings
from tests.docs.ledger import newest

DOCUMENT = "docs/next-token.md"


def held() -> Iterator[str]:
    yield from readings()
    alone = newest("perplexity.jsonl", lambda row: row.gate == 0, scored_tokens=4088)
    both = newest("perplexity.jsonl", lambda row: row.gate > 0, scored_tokens=4088)
    low, high = alone.interval
    yield (
        f"on {alone.scored_tokens:,} tokens of two essays of which the first halves had been read "
        f"differed by {alone.difference:.4f} nats from the model's own, 95 % interval {low:.4f} to "
        f"{high:.4f}"
    )
    low, high = both.interval
    yield f"read as well it was {-both.difference:.3f} lower, {low:.3f} to {high:.3f}"
