"""Generated documents hold what is asked about them, and only as often as it is meant."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cmr.evaluation.checks import check_questions
from cmr.evaluation.judging import contains
from cmr.evaluation.prompts import encode
from cmr.evaluation.quick import KINDS, quick

TOKENS = 6_000  # of the tiny tokenizer, to which a letter is one


@pytest.fixture(scope="module")
def made(decoder: tuple[Any, Any]) -> Any:
    return quick(decoder[1], seed=3, tokens=TOKENS)


def test_all_kinds_are_asked_of_documents_of_that_length(
    decoder: tuple[Any, Any], made: Any
) -> None:
    documents, questions = made
    assert Counter(name.rpartition(" ")[0] for name in documents) == dict.fromkeys(KINDS, 2)
    assert {question.document for question in questions} == set(documents)
    assert len(questions) == 20
    check_questions(documents, questions)
    for name, text in documents.items():
        assert TOKENS * 0.8 < len(encode(decoder[1], text)) < TOKENS * 1.2, name


def test_answers_stand_in_the_evidence_alone(made: Any) -> None:
    documents, questions = made
    for question in questions:
        text = documents[question.document]
        if question.kind == "common words":
            counts = Counter(line.split()[1] for line in text.splitlines())
            assert {word for word, _ in counts.most_common(3)} == set(question.parts)
            continue
        rest = text
        for piece in question.evidence:
            rest = rest.replace(piece, "")
        for answer in question.answers or question.parts:
            assert contains(text, answer)
            if question.kind != "variables":
                assert not contains(rest, answer), question
        assert not any(contains(question.text, answer) for answer in question.answers)


def test_a_chain_of_variables_leads_to_its_value(made: Any) -> None:
    documents, questions = made
    asked = [question for question in questions if question.kind == "variables"]
    assert len(asked) == 2
    for question in asked:
        values: dict[str, str] = {}
        for line in documents[question.document].splitlines():
            words = line.rstrip(".").split()
            if line.startswith("Set the variable "):
                values[words[3]] = values.get(words[-1], words[-1])
        value = question.text.rstrip("?").split()[-1]
        assert {name for name, of in values.items() if of == value} == set(question.parts)
        assert len(values) == 8


def test_the_seed_decides(decoder: tuple[Any, Any], made: Any) -> None:
    assert quick(decoder[1], seed=3, tokens=TOKENS) == made
    other, _ = quick(decoder[1], seed=4, tokens=TOKENS)
    assert all(other[name] != text for name, text in made[0].items())
