"""The first page."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.figures.measured import (
    ANSWERS,
    PRESSED,
    QWEN,
    SMOLLM2,
    answers,
    beside_presses,
    talk,
)
from tests.docs.ledger import Figure, newest, rows, told

DOCUMENT = "README.md"


def held() -> Iterator[str]:
    yield from answers(intervals=False)
    yield from pressed()
    yield from read()
    yield from found()
    needles = rows("needle.jsonl", system="memory")
    named = [row for row in needles if row.named == "full"]
    yield f"memory names the needle in {Figure(len(named))} of {Figure(len(needles))} cells"


def pressed() -> Iterator[str]:
    """What presses of kvpress answer, which keep about what memory reads."""
    memory, *others = (beside_presses(one) for one in PRESSED.values() if one != "full")
    most = max(row.right for row in others)
    yield f"answer at most {most} of {memory.n}, where memory answers {memory.right}"
    slower = min(row.first_answer_seconds for row in others) / memory.first_answer_seconds
    told(2 <= slower < 3, "first answer takes twice as long")


def read() -> Iterator[str]:
    """Tokens that memory reads for a question."""
    bare, inside = (
        [
            newest("recall.jsonl", system=system, model=model, **ANSWERS).recalled_tokens
            for model in (SMOLLM2, QWEN)
        ]
        for system in ("memory", "memory, wrapped")
    )
    yield (
        f"Memory reads {min(bare):.0f} to {max(bare):.0f} tokens a plain question, "
        f"{min(inside):.0f} to {max(inside):.0f} inside"
    )


def found() -> Iterator[str]:
    memory, bm25, dense = (talk(system, "bare") for system in ("memory", "bm25", "dense"))
    yield (
        f"what people wrote, {memory.questions} questions on five public conversations (LoCoMo), "
        f"it finds {memory.found:%} % of the evidence in {memory.tokens:.0f} tokens, BM25 "
        f"{bm25.found:%} % and MiniLM {dense.found:%} % in {bm25.tokens:.0f}"
    )
    memory, bm25, dense = (talk(system, "wrapped") for system in ("memory", "bm25", "dense"))
    yield f"inside everyday talk {memory.found:%}, {bm25.found:%} and {dense.found:%} %"
