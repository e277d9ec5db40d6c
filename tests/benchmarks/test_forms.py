"""Requests about the form of an answer: which replies follow them, and what a row says."""

from __future__ import annotations

import pytest

from benchmarks.recall.forms import FORMS, summary


@pytest.mark.parametrize(
    ("form", "follows", "does_not"),
    [
        ("beginning", "Dear Tom, it hangs there.", "It hangs there, Tom."),
        ("capitals", "IT IS 4417.", "It is 4417."),
        ("ending", "It is 4417. Over and out.", "It is 4417. Out."),
        ("list", " - It is 4417.", "It is 4417 - I think."),
        ("language", "Der Kode ist 4417.", "The code is 4417."),
    ],
)
def test_a_reply_has_its_form_or_not(form: str, follows: str, does_not: str) -> None:
    message, has = FORMS[form]
    assert "{}" in message
    assert has(follows) and not has(does_not)


def test_a_setting_is_compared_with_the_first_one() -> None:
    told = {0.0: [(True, True), (False, True)], 0.7: [(True, False), (True, True)]}
    details = [
        {"focus": focus, "fact": f"f{n}", "wording": "0 list", "form": "list", "right": right,
         "followed": followed}
        for focus, found in told.items()
        for n, (right, followed) in enumerate(found)
    ]  # fmt: skip
    row = summary(details, 0.7, 0.0)
    assert (row["n"], row["right"], row["followed"], row["both"]) == (2, 2, 1, 1)
    assert row["right_against"]["0"]["difference"] == 0.5
    assert row["followed_against"]["0"]["difference"] == -0.5
    assert row["by_form"]["list"] == 1
