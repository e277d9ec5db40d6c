"""Tokens that are one word, and where what is asked is cut into sentences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmr.retrieval import Vocabulary
from cmr.retrieval.vocabulary import MOST_PARTS, NO_WORD
from tests.retrieval.spoken import Words


def cut(text: str, mask: torch.Tensor | None = None) -> list[str]:
    """The parts of a text, in their order."""
    words = Words()
    ids = words.ids(text)
    of, marked = words.vocabulary().parts(ids, mask)
    parts = [
        "".join(words.tokens[n] for n in ids[0, of[0] == part]) for part in range(marked.shape[1])
    ]
    assert marked[0].tolist() == [any(mark in part for mark in "?？؟") for part in parts]
    return [part for part in parts if part]


def test_forms_of_a_word_are_one_word() -> None:
    words = Words("<end>")
    ids = words.ids("Lock locking locked, 42 LOCK! door the")
    classes = words.vocabulary().classes_of(ids)[0].tolist()
    lock, locking, locked, comma, number, loud, mark, door, the = classes
    assert lock == locking == locked == loud and comma == mark == NO_WORD
    assert len({lock, number, door, the, NO_WORD}) == 5


def test_what_is_no_token_is_no_word() -> None:
    words = Words("<end>")
    ids = words.ids("door")
    strange = torch.tensor([[-1, 0, len(words), 10**9, ids.item()]])
    found = words.vocabulary().classes_of(strange)[0].tolist()
    assert found[:4] == [NO_WORD] * 4 and found[4] != NO_WORD


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("where is my red umbrella", ["where is my red umbrella"]),
        (
            "It rained all day. Where is my umbrella? I need it now!",
            ["It rained all day.", " Where is my umbrella?", " I need it now!"],
        ),
        ("He ran 3.5 miles to example.org today", ["He ran 3.5 miles to example.org today"]),
        ("one two three\nfour five six", ["one two three\n", "four five six"]),
        ("هل تعرف أين المفتاح؟ شكرا جزيلا لك", ["هل تعرف أين المفتاح؟", " شكرا جزيلا لك"]),
        # What is too short to ask anything goes with what stands in front of it, or follows first.
        ("Hi! Where is my umbrella? Thanks.", ["Hi! Where is my umbrella? Thanks."]),
        ("one two three. Mr. Lund knows it well.", ["one two three. Mr.", " Lund knows it well."]),
        ("?", ["?"]),
    ],
)
def test_what_is_asked_is_cut_into_sentences(text: str, parts: list[str]) -> None:
    assert cut(text) == parts


def test_what_does_not_ask_is_in_no_part() -> None:
    text = "one two three. four five six. seven eight nine."
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 4:8] = False  # the second sentence
    assert cut(text, mask) == ["one two three.", " seven eight nine."]


def test_of_a_long_text_the_rest_is_one_part() -> None:
    parts = cut(" ".join(f"a{n} b{n} c{n}." for n in range(MOST_PARTS + 9)))
    assert len(parts) == MOST_PARTS and parts[-1].count(".") == 10


def test_rows_are_cut_each_for_itself() -> None:
    words = Words()
    first = words.ids("one two three. four five six.")
    second = words.ids("one two three four five six.")
    ids = torch.cat([first, torch.nn.functional.pad(second, (1, 0), value=-1)])
    of = words.vocabulary().parts(ids, ids >= 0).of
    assert of.tolist() == [[0] * 4 + [1] * 4, [-1] + [0] * 7]


class Refuses:
    """A tokenizer that knows how many tokens it has and no more."""

    def __len__(self) -> int:
        return 3

    def batch_decode(self, rows: Any) -> list[str]:
        raise NotImplementedError


@pytest.mark.parametrize("tokenizer", [None, object(), Refuses()])
def test_who_cannot_say_what_tokens_are_has_no_vocabulary(tokenizer: Any) -> None:
    assert Vocabulary.of(tokenizer, torch.device("cpu")) is None


def test_the_real_tokenizer(smollm2: Any) -> None:
    tokenizer = smollm2[1]
    vocabulary = Vocabulary.of(tokenizer, torch.device("cpu"))
    assert vocabulary is not None
    text = "Hello again, dear friend. Where did she adopt the dog? Have a nice week!"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    of = vocabulary.parts(ids, None).of[0]
    middle = tokenizer.decode(ids[0, of == 1])
    assert middle == " Where did she adopt the dog?" and int(of.max()) == 2
    forms = [tokenizer(word)["input_ids"] for word in (" adopted", "Adopt", " adopts")]
    first = [form[0] for form in forms if len(form) == 1]
    assert (
        len(first) > 1 and len({vocabulary.classes_of(torch.tensor(n)).item() for n in first}) == 1
    )
    end = torch.tensor(tokenizer.eos_token_id)
    assert vocabulary.classes_of(end).item() == NO_WORD
