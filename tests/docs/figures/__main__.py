"""Says which figures of the documents are not those of their newest rows; `--write` mends them.

Words around a figure are not touched: where they have to say something else now, that is for who
reads what was changed.
"""

from __future__ import annotations

import sys

from tests.docs.blocks import ROOT
from tests.docs.ledger import compare, differences, ledgers, text_of


def main(write: bool) -> int:
    """Prints what is wrong, a line each; returns how much of it is left."""
    left = 0
    for document, ledger in ledgers().items():
        text = text_of(document)
        told = differences(document, text, ledger.held())
        print(*told, sep="\n", end="\n" if told else "")
        left += len(told)
        if write and not document.endswith(".svg"):
            changes = {change for words in ledger.held() for change in compare(text, words).wrong}
            for begin, end, figure in sorted(changes, reverse=True):
                text = text[:begin] + figure + text[end:]
            (ROOT / document).write_text(text, encoding="utf-8")
            left -= len(changes)
    return left


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit("python -m tests.docs.figures [--write]")
    sys.exit(bool(main(write="--write" in sys.argv)))
