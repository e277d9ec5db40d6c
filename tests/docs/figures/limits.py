"""Limits."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.figures.measured import ANSWERS, QWEN, SMOLLM2
from tests.docs.ledger import in_words, newest

DOCUMENT = "docs/limits.md"


def held() -> Iterator[str]:
    found = newest("retrieval.jsonl", system="default", kind="paraphrased", tokens=5000, seed=0)
    yield f"two passages held the fact in {found['read@2']:%} % at {found.tokens:,} tokens"
    small, qwen = (
        newest("recall.jsonl", system="memory, wrapped", model=model, **ANSWERS).of_bare.share
        for model in (SMOLLM2, QWEN)
    )
    yield (
        f"SmolLM2-135M keeps {in_words(round(5 * small))} of five plain answers, Qwen2.5-0.5B "
        f"{in_words(round(10 * qwen))} of ten"
    )
