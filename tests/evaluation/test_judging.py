"""Replies are judged by words, and what was shown by the tokens of the evidence."""

from __future__ import annotations

import pytest

from cmr.evaluation import Question, judge
from cmr.evaluation.judging import share_found

WHO = Question("Who?", "a", ("Marta Lindqvist", "Lindqvist"))
CODES = Question("Which?", "a", parts=("17", "1,200"))


@pytest.mark.parametrize(
    ("reply", "question", "contains", "exact", "f1"),
    [
        ("It was LINDQVIST, I think.", WHO, 1, 0, 2 / 6),
        ("lindqvist.", WHO, 1, 1, 1),
        ("Lindqvists", WHO, 0, 0, 0),
        ("Marta", WHO, 0, 0, 2 / 3),
        ("", WHO, 0, 0, 0),
        ("17 and 18", CODES, 0.5, 0, 2 / 5),
        ("1200, 17", CODES, 1, 0, 1),
        ("17, 1200", CODES, 1, 1, 1),
        ("117 and 1,2000", CODES, 0, 0, 0),
    ],
)
def test_a_reply_is_judged_in_three_ways(
    reply: str, question: Question, contains: float, exact: float, f1: float
) -> None:
    assert judge(reply, question) == pytest.approx({"contains": contains, "exact": exact, "f1": f1})


def test_words_count_as_often_as_they_stand_in_both() -> None:
    question = Question("?", "a", ("tick tick tock",))
    assert judge("tick tick tick", question)["f1"] == pytest.approx(2 * 2 / 6)


def test_sixty_percent_of_a_piece_is_enough() -> None:
    evidence = [(10, 20), (40, 50)]
    assert share_found(evidence, [(0, 16)]) == 0.5
    assert share_found(evidence, [(0, 15)]) == 0.0
    assert share_found(evidence, [(14, 44), (46, 60)]) == 1.0
    assert share_found(evidence, []) == 0.0
