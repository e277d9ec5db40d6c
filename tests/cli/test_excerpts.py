"""What is shown of a recalled passage: the part about what was asked."""

from __future__ import annotations

import pytest

from cmr.cli.talk.excerpts import excerpt, words_of

FILLER = "The rain fell on the roofs and nobody was in the streets of the town. " * 8
FACT = "Marta Lindqvist repaired the village clock."


def bold(shown) -> list[str]:
    return [shown.plain[span.start : span.end] for span in shown.spans]


def test_words_that_stand_everywhere_are_not_looked_for():
    asked = words_of("Who repaired the Clock at 7 in town?", "It was the clock.")
    assert asked == ["repaired", "clock", "7", "town"]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_part_that_matched_is_shown_wherever_it_stands(before):
    text = FILLER * before + FACT + FILLER * (2 - before)
    shown = excerpt(text, words_of("Who repaired the village clock?"))
    assert FACT.split(" ", 2)[2].rstrip(".") in shown.plain
    assert {"repaired", "village", "clock"} <= set(bold(shown))
    assert shown.plain.startswith("… ") is (before > 0)
    assert shown.plain.endswith(" …") is (before < 2)
    assert len(shown.plain) <= 164


def test_a_rare_word_says_more_than_one_that_is_all_over():
    text = "The clock of the clock tower. " * 20 + "Lindqvist came. " + FILLER
    assert "Lindqvist" in excerpt(text, words_of("clock Lindqvist")).plain


def test_longer_forms_of_a_word_count():
    assert bold(excerpt("Two towers fell.", words_of("tower"))) == ["towers"]
    assert bold(excerpt("At 170 and 17.", words_of("17"))) == ["17"]


def test_without_any_word_it_is_the_middle():
    text = "a " * 200 + "MIDDLE" + " b" * 200
    assert "MIDDLE" in excerpt(text, words_of("nothing of it")).plain


def test_a_short_passage_is_whole_and_on_one_line():
    assert excerpt(" One\n two [bold]. ", []).plain == "One two [bold]."
