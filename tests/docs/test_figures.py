"""A figure in a document is one of a row, and the rows that documents name are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, documents
from tests.docs.ledger import RESULTS, compare, differences, ledgers, text_of
from tests.docs.not_measured import EVERYWHERE, NOT_MEASURED
from tests.docs.unheld import numbers, spans, unheld

NAMED = re.compile(r"\b(?!own/)(?<!own/)([a-z_]+(?:/[a-z_]+)?\.jsonl)\b")
NOT_ROWS = {
    "docs/evaluate.md": {"answers.jsonl", "questions.jsonl", "replies.jsonl", "summary.jsonl"},
    "docs/secure.md": {"keys.jsonl"},
    "docs/serving.md": {"keys.jsonl"},
    "docs/use.md": {"q.jsonl"},
}
"""Files of other kinds that documents name. `own/` has a reader's rows, which git ignores."""
PLACES = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users)/")
LEDGERS = ledgers()
OTHERS = {
    "docs/gpu-model.md": "a calculation, of which `benchmarks.compiled.roofline` writes most",
    "docs/misuse.md": "messages, which a test compares with what is said",
}
"""Pages of which not every number is looked at."""
WHOLLY_HELD = [
    page
    for page in documents()
    if re.fullmatch(r"(?:README|examples/README|docs/[^/]+)\.md", page) and page not in OTHERS
]


@pytest.mark.parametrize("document", LEDGERS)
def test_figures_are_those_of_their_rows(document: str) -> None:
    wrong = differences(document, text_of(document), LEDGERS[document].held())
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("document", WHOLLY_HELD)
def test_every_number_is_held_or_no_figure(document: str) -> None:
    text = text_of(document)
    ledger = LEDGERS[document].held() if document in LEDGERS else ()
    held = [span for words in ledger for span in compare(text, words).held]
    free = unheld(document, text, held)
    said = "a ledger in tests/docs/figures/ has to say of which row it is, or not_measured.py what:"
    assert not free, f"{said}\n" + "\n".join(free)


@pytest.mark.parametrize("document", NOT_MEASURED)
def test_what_is_no_figure_is_there(document: str) -> None:
    """Each pattern stands in its page and has a number in it, so that none is left behind."""
    text = text_of(document)
    found = numbers(text)
    for reason, phrases in NOT_MEASURED[document].items():
        for phrase in phrases:
            places = spans(phrase, text)
            assert any(
                first <= end and begin <= last for first, last in places for begin, end in found
            ), f"{document}: no number in {phrase!r} ({reason})"
    assert not set(NOT_MEASURED) - set(WHOLLY_HELD) and EVERYWHERE


def test_another_figure_is_told_with_what_the_row_says() -> None:
    """So that a break of the comparison itself is seen."""
    document = "docs/memory.md"
    text = text_of(document)
    broken = text.replace("86 were answered", "89 were answered")
    assert broken != text
    (told,) = differences(document, broken, LEDGERS[document].held())
    assert re.match(r"docs/memory\.md:\d+: 89 stands there, 86 in the row: ", told)
    (told,) = differences(document, text.replace("were answered", "came"), LEDGERS[document].held())
    assert told.startswith(
        "docs/memory.md: these words are not in it: (5,000 tokens, 96 questions)"
    )
    assert unheld(document, text + "\nIt takes 3.7 ms.\n", [])[-1].startswith(
        f"docs/memory.md:{text.count(chr(10)) + 2}: 3.7 is held by no row"
    )


@pytest.mark.parametrize("document", documents())
def test_the_rows_that_a_document_names_are_there(document: str) -> None:
    named = set(NAMED.findall((ROOT / document).read_text(encoding="utf-8")))
    for name in named - NOT_ROWS.get(document, set()):
        within = [path for path in RESULTS.rglob("*.jsonl") if path.as_posix().endswith(f"/{name}")]
        assert within, f"{document} names {name}, which is not in benchmarks/results/"


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.jsonl")), ids=lambda path: path.relative_to(RESULTS).as_posix()
)
def test_a_row_can_be_read_and_names_no_place_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text and all(isinstance(json.loads(line), dict) for line in text.splitlines())
    assert PLACES.findall(text) == []
