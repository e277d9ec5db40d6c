"""Tokens become text: whole characters, and nothing of a stop word or behind it."""

from __future__ import annotations

from typing import Any

import pytest

from cmr.serving.engines.pieces import Pieces


@pytest.mark.parametrize("text", ["plain", "ä – 漢字 🙂\n", "a\ufffdb", "🙂" * 5])
def test_pieces_make_the_whole_and_no_half_character(tiny: tuple[Any, Any], text: str) -> None:
    tokenizer = tiny[1]
    pieces = Pieces(tokenizer)
    found = [pieces.add(token) for token in tokenizer(text)["input_ids"]]
    assert "".join([*found, pieces.end()]) == text
    assert all("\ufffd" not in piece for piece in found) or "\ufffd" in text


def test_a_broken_character_at_the_end_is_told(tiny: tuple[Any, Any]) -> None:
    pieces = Pieces(tiny[1])
    ids = tiny[1]("ok🙂")["input_ids"][:-1]
    assert "".join(pieces.add(token) for token in ids) == "ok"
    assert pieces.end() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one twine", ["two"], "one twine"),
        ("ends with tw", ["two"], "ends with tw"),
        ("aabaac", ["aac"], "aab"),
        ("🙂🙃", ["🙃"], "🙂"),
    ],
)
def test_an_answer_ends_in_front_of_a_stop_word(
    tiny: tuple[Any, Any], text: str, stops: list[str], left: str
) -> None:
    pieces, found = Pieces(tiny[1], stops), ""
    for token in tiny[1](text)["input_ids"]:
        found += pieces.add(token)
        # Never more than what is left in the end, not even for a moment.
        assert left.startswith(found)
        if pieces.stopped:
            break
    assert found + pieces.end() == left
    assert pieces.stopped == (left != text)
