"""Questions about a document that is far longer than the window, and what was read to answer them.

Without a document it reads the Python Language Reference that comes with Python, with a few
invented facts planted in it, so that the model cannot know them from its training.

    python examples/book_qa.py
    python examples/book_qa.py --document book.txt --question "Who repaired the clock?"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import both, encode, load

import cmr
from cmr.demo import demo_document


def show(passages: Sequence[Any]) -> None:
    """Print passages, best first: what was found stands in the middle, its neighbours around."""
    for passage in passages:
        text = " ".join(passage.text.split())
        third = len(text) // 3
        print(f"    tokens {passage.start}-{passage.end}, score {passage.score:.2f}:")
        print(f"    ...{text[third : 2 * third]}...")
    print()


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read, ask, show; returns for each question both answers and the passages that were read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--document", type=Path, help="a text in UTF-8")
    parser.add_argument("--question", action="append", help="may be given several times")
    parser.add_argument("--tokens", type=int, default=6_000, help="of the text without a document")
    parser.add_argument("--window", type=int, default=512, help="tokens the model sees at once")
    args = parser.parse_args(argv)
    if args.document is not None and not args.question:
        parser.error("--document needs a --question")
    model, tokenizer = load()
    if args.document is None:
        document = demo_document(tokenizer, args.tokens)
        text = document.text
        questions = args.question or [question.text for question in document.questions[:4]]
    else:
        text, questions = args.document.read_text(encoding="utf-8"), args.question
    ids = encode(tokenizer, text)
    budget = -(-ids.shape[1] // 1024) * 1024 + 1024
    with cmr.attach(model, tokenizer=tokenizer, window=args.window, budget=budget) as memory:
        report = memory.read(ids)
        print(
            f"read {report.tokens:,} tokens through a window of {args.window} "
            f"in {report.seconds:.1f} s\n"
        )
        found = []
        for question in questions:
            without, remembered = both(model, tokenizer, memory, question, tokens=20)
            passages = memory.recalled[0]
            show(passages)
            found.append({"without": without, "memory": remembered, "passages": passages})
    return found


if __name__ == "__main__":
    main()
