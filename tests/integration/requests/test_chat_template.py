"""The question inside a chat template is what asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmr.evaluation.prompts import chat, encode
from cmr.integration.requests.chat_template import Template


@pytest.fixture(scope="module")
def tokenizer(smollm2: Any) -> Any:
    return smollm2[1]


def asked(tokenizer: Any, ids: list[int]) -> str | None:
    mask = Template.of(tokenizer).question(torch.tensor([ids]))
    return None if mask is None else tokenizer.decode(torch.tensor(ids)[mask[0]])


def test_only_the_question_asks(tokenizer: Any) -> None:
    question = "Where did Ms Lindgren live as a child?"
    assert asked(tokenizer, chat(tokenizer, question)) == question


def test_of_several_turns_the_last_one_asks(tokenizer: Any) -> None:
    turns = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Who repaired the clock?"},
        {"role": "assistant", "content": "Anna."},
        {"role": "user", "content": "And when?"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert asked(tokenizer, encode(tokenizer, text)) == "And when?"


def test_without_a_template_nothing_is_left_out(tokenizer: Any) -> None:
    assert asked(tokenizer, encode(tokenizer, "Who repaired the clock?")) is None
    assert asked(tokenizer, [1]) is None
    assert Template.of(None) is None


def test_every_row_must_have_a_question(tokenizer: Any) -> None:
    prompt = chat(tokenizer, "Who repaired the clock?")
    plain = encode(tokenizer, "clock " * len(prompt))[: len(prompt)]
    template = Template.of(tokenizer)
    assert template.question(torch.tensor([prompt, prompt])).sum(-1).unique().numel() == 1
    assert template.question(torch.tensor([prompt, plain])) is None


def test_padding_in_front_changes_nothing(tokenizer: Any) -> None:
    prompt = chat(tokenizer, "Who repaired the clock?")
    template = Template.of(tokenizer)
    plain = template.question(torch.tensor([prompt]))
    padded = template.question(torch.tensor([[0] * 9 + prompt]))
    assert torch.equal(padded[:, 9:], plain) and not padded[:, :9].any()


def test_what_was_said_is_what_stands_in_no_run(tokenizer: Any) -> None:
    prompt = chat(tokenizer, "Who?")
    answer = encode(tokenizer, "Anna did.")
    content = Template.of(tokenizer).content(torch.tensor([prompt + answer]))[0]
    assert tokenizer.decode(torch.tensor(prompt + answer)[content]) == "Who?Anna did."
