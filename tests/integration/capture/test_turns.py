"""Turns begin blocks of their own, and what was told weighs most."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cmr
from cmr.integration.capture.row_text import RowText
from cmr.integration.capture.turns import OTHER, OTHER_WEIGHT, TOLD, UNSAID, Layout, stored_only

TOLD_FIRST = "My locker number is 4417, it is the one next to the window."
ASKED = "What is my locker number?"


def layout(*kinds: list[int], size: int = 4) -> Layout:
    return Layout(torch.tensor(kinds, dtype=torch.int8), size)


def test_each_turn_begins_a_block() -> None:
    made = layout([UNSAID, TOLD, TOLD, UNSAID, UNSAID, OTHER, OTHER, OTHER, OTHER, OTHER, TOLD])
    assert made.places.tolist() == [[0, 1, -1, -1, 4, 5, 6, 7, 8, -1, -1, -1, 9]]
    turns = made.turns([(0, 0), (0, 1), (0, 2), (0, 3)])
    assert turns.begins == [True, True, False, True]
    assert turns.weights == [1.0, OTHER_WEIGHT, OTHER_WEIGHT, 1.0]


def test_turns_of_the_same_kind_with_a_template_between_them_are_two() -> None:
    made = layout([UNSAID, TOLD, UNSAID, TOLD])
    assert made.places.tolist() == [[0, -1, -1, -1, 2]]
    assert made.turns([(0, 0), (0, 1)]).begins == [True, True]


def test_a_turn_that_goes_on_begins_no_block() -> None:
    made = layout([OTHER, OTHER, OTHER, TOLD])
    assert made.places.tolist() == [[0, 1, -1, -1, 2]]
    assert made.turns([(0, 0), (0, 1)]).begins == [False, True]


def test_rows_are_filled_up() -> None:
    made = layout([UNSAID, TOLD, OTHER], [UNSAID, UNSAID, TOLD])
    assert made.places.tolist() == [[0, -1, -1, -1, 1], [1, -1, -1, -1, -1]]
    moved = made.moved(torch.tensor([[5.0, 6.0], [7.0, 8.0]]), padding=-1)
    assert moved.tolist() == [[5, -1, -1, -1, 6], [8, -1, -1, -1, -1]]
    heads = torch.arange(8.0).view(2, 1, 2, 2)
    assert made.moved(heads, dim=2)[1, 0].tolist() == [[6, 7], [0, 0], [0, 0], [0, 0], [0, 0]]


def test_nothing_stands_nowhere() -> None:
    assert layout([UNSAID, UNSAID]).places.shape == (1, 0)


def test_what_is_not_stored_has_no_kind() -> None:
    kinds = torch.tensor([[TOLD, TOLD, TOLD, OTHER]], dtype=torch.int8)
    assert stored_only(kinds.clone(), [(1, 2)]).tolist() == [[UNSAID, TOLD, TOLD, UNSAID]]
    assert stored_only(kinds.clone(), [(0, 0)]).tolist() == [[TOLD, UNSAID, UNSAID, UNSAID]]


def test_kinds_of_a_prompt_and_its_answer() -> None:
    said = torch.tensor([True, False, True, True])
    told = torch.tensor([False, False, True, False])
    text = RowText(~said, torch.zeros(0, dtype=torch.int64), told=told)
    assert text.kinds(0, 6).tolist() == [UNSAID, OTHER, UNSAID, TOLD, OTHER, OTHER, OTHER]
    assert text.kinds(3, 2).tolist() == [TOLD, OTHER, OTHER]
    assert text.cropped(3).kinds(2, 1).tolist() == [UNSAID, TOLD]


def request(model: Any, tokenizer: Any, text: str) -> str:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
    )
    out = model.generate(**ids, max_new_tokens=16, do_sample=False)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("how", ["generate", "remember"])
def test_a_question_asked_again_finds_what_was_told(smollm2: tuple[Any, Any], how: str) -> None:
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, remember="all") as memory:
        anna = memory.session("anna", create=True)
        if how == "generate":
            with anna:
                request(model, tokenizer, TOLD_FIRST)
                for _ in range(2):
                    request(model, tokenizer, ASKED)
        else:
            answers = ("I see.", "I have no access to it.", "I am sorry, I do not know.")
            for text, answer in zip((TOLD_FIRST, ASKED, ASKED), answers, strict=True):
                anna.remember([
                    {"role": "user", "content": text}, {"role": "assistant", "content": answer}
                ])  # fmt: skip
        texts = [block.text or "" for block in memory.inspect("anna")]
        assert texts[0] == TOLD_FIRST and ASKED in texts
        ring = memory._core.ring
        norms = {text: float(ring.index[slot, 1].norm()) for slot, text in enumerate(texts)}
        assert norms[TOLD_FIRST] == pytest.approx(1.0, abs=0.01)
        assert norms[ASKED] == pytest.approx(OTHER_WEIGHT, abs=0.01)
        best = anna.search(ASKED, blocks=1)[0]
        assert best.text == TOLD_FIRST, "neither the question itself nor an answer"
