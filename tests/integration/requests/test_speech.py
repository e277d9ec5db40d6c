"""What was said, without the chat template and its system prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmr.integration.requests.chat_template import Template
from cmr.integration.requests.speech import Speech
from cmr.retrieval.vocabulary import Vocabulary

TURNS = [
    {"role": "user", "content": "Who repaired the clock?"},
    {"role": "assistant", "content": "Anna did."},
    {"role": "user", "content": "And when?"},
]
SYSTEM = {"role": "system", "content": "Answer in one word."}


@pytest.fixture(scope="module")
def tokenizer(smollm2: Any) -> Any:
    return smollm2[1]


def said(tokenizer: Any, ids: list[int], begins: bool = True) -> str:
    speech = Speech.of(tokenizer, Template.of(tokenizer))
    assert speech is not None
    text = torch.tensor(ids)
    return str(tokenizer.decode(text[speech.said(text, begins)]))


def rendered(tokenizer: Any, turns: list[dict[str, str]], begun: bool) -> list[int]:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["default prompt", "own prompt"])
def test_neither_template_nor_system_prompt_was_said(
    tokenizer: Any, system: list[dict[str, str]], begun: bool
) -> None:
    ids = rendered(tokenizer, [*system, *TURNS], begun)
    assert said(tokenizer, ids) == "Who repaired the clock?Anna did.And when?"


def test_a_system_turn_in_the_middle_was_not_said(tokenizer: Any) -> None:
    ids = rendered(tokenizer, [*TURNS[:2], SYSTEM, TURNS[2]], begun=True)
    assert said(tokenizer, ids) == "Who repaired the clock?Anna did.And when?"


def test_a_system_prompt_alone_is_not_said_by_anybody(tokenizer: Any) -> None:
    ids = rendered(tokenizer, [SYSTEM], begun=True)
    assert said(tokenizer, ids) == ""


def test_in_the_middle_of_a_text_what_comes_before_the_first_turn_was_said(tokenizer: Any) -> None:
    ids = tokenizer("the clock", add_special_tokens=False)["input_ids"]
    whole = [*ids, *rendered(tokenizer, TURNS[2:], begun=True)]
    turn = whole.index(tokenizer.convert_tokens_to_ids("<|im_start|>"), len(ids) + 1)
    assert said(tokenizer, [*ids, *whole[turn - 2 :]], begins=False) == "the clockAnd when?"


def test_a_text_without_turns_was_said(tokenizer: Any) -> None:
    ids = tokenizer("Once upon a time.", add_special_tokens=False)["input_ids"]
    assert said(tokenizer, ids) == "Once upon a time."
    assert Speech.of(tokenizer, None) is None


def test_a_template_that_refuses_a_system_prompt(tokenizer: Any) -> None:
    class Refusing:
        chat_template = tokenizer.chat_template

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer(*args, **kwargs)

        def apply_chat_template(self, turns: list[dict[str, str]], **kwargs: Any) -> Any:
            if turns[0]["role"] == "system":
                raise ValueError("no system prompt here")
            return tokenizer.apply_chat_template(turns, **kwargs)

    speech = Speech.of(Refusing(), Template.of(Refusing()))
    ids = torch.tensor(rendered(tokenizer, TURNS, begun=True))
    assert speech is not None
    text = tokenizer.decode(ids[speech.said(ids, True)])
    assert text == "Who repaired the clock?Anna did.And when?"


def told_in(
    speech: Speech, ids: torch.Tensor, said: torch.Tensor, vocabulary: Vocabulary | None
) -> torch.Tensor:
    told = speech.told(ids, said, vocabulary)
    assert told is not None
    return told


@pytest.mark.parametrize("begun", [True, False])
def test_what_users_told_is_neither_an_answer_nor_a_question(tokenizer: Any, begun: bool) -> None:
    speech = Speech.of(tokenizer, Template.of(tokenizer))
    vocabulary = Vocabulary.of(tokenizer, torch.device("cpu"))
    assert speech is not None
    turns = [
        {"role": "user", "content": "I moved to Oslo. Where can I swim there? It is cold today."},
        {"role": "assistant", "content": "I cannot know that."},
        {"role": "user", "content": "The clock was repaired."},
    ]
    ids = torch.tensor(rendered(tokenizer, [SYSTEM, *turns], begun))
    said = speech.said(ids, begins=True)
    told = tokenizer.decode(ids[told_in(speech, ids, said, vocabulary)])
    assert told == "I moved to Oslo. It is cold today.The clock was repaired."
    both = tokenizer.decode(ids[told_in(speech, ids, said, None)])
    assert both == turns[0]["content"] + turns[2]["content"]


def test_without_turns_nobody_is_known_to_have_told(tokenizer: Any) -> None:
    speech = Speech.of(tokenizer, Template.of(tokenizer))
    assert speech is not None
    ids = torch.tensor(tokenizer("Once upon a time.", add_special_tokens=False)["input_ids"])
    assert speech.told(ids, torch.ones_like(ids).bool(), None) is None


def test_a_question_is_a_sentence_of_its_own_turn(tokenizer: Any) -> None:
    speech = Speech.of(tokenizer, Template.of(tokenizer))
    vocabulary = Vocabulary.of(tokenizer, torch.device("cpu"))
    assert speech is not None
    long = " ".join(f"Shelf {number} holds the maps." for number in range(300))
    turns = [
        {"role": "user", "content": "my sister lives in Ghent"},  # no mark at its end
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": "Where does she live?"},
        {"role": "assistant", "content": "In Ghent."},
        {"role": "user", "content": f"{long} Which shelf holds them?"},
    ]
    ids = torch.tensor(rendered(tokenizer, turns, begun=True))
    told = tokenizer.decode(ids[told_in(speech, ids, speech.said(ids, True), vocabulary)])
    assert told.startswith("my sister lives in GhentShelf 0 holds the maps.")
    assert told.endswith("Shelf 299 holds the maps.") and "?" not in told
