"""The documents of a quick evaluation, a function a kind, and the questions about each."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from cmr.evaluation.prompts import encode
from cmr.evaluation.questions import Question
from cmr.evaluation.quick.conversation import conversation
from cmr.evaluation.quick.haystack import haystack
from cmr.evaluation.quick.names import PLACES, WORDS

TOKENS = 1_600
DOCUMENTS = 2
CHAIN, COMMON = 4, 3
Made = tuple[str, list[Question]]
"""A document's text, and questions about it; their document is named later."""


def quick(
    tokenizer: Any, seed: int = 0, tokens: int = TOKENS, documents: int = DOCUMENTS
) -> tuple[dict[str, str], list[Question]]:
    """Documents by name, and the questions about them, the same for the same arguments.

    Args:
        tokenizer: counts the tokens.
        seed: of names, numbers, texts and places.
        tokens: of a document, about.
        documents: of each of `KINDS`.
    """
    texts, asked = {}, []
    for kind, make in KINDS.items():
        for number in range(documents):
            # A source of chance for each: with more documents the others stay what they are.
            name = f"{kind} {number + 1}"
            text, questions = make(tokenizer, tokens, random.Random(f"{seed}/{kind}/{number}"))
            texts[name] = text
            asked += [
                Question(q.text, name, q.answers, q.parts, q.evidence, kind) for q in questions
            ]
    return texts, asked


def _number(rng: random.Random) -> str:
    return str(rng.randint(10_000, 99_999))


def _code(place: str, number: str) -> str:
    return f"The access code of the {place} is {number}."


def _ask(place: str, number: str) -> Question:
    return Question(
        f"What is the access code of the {place}?", "", (number,), evidence=(_code(place, number),)
    )


def _codes(rng: random.Random, count: int) -> list[tuple[str, str]]:
    return [(place, _number(rng)) for place in rng.sample(PLACES, count)]


def needle(tokenizer: Any, tokens: int, rng: random.Random) -> Made:
    """One sentence that is like no other, asked about in two ways."""
    [(place, number)] = _codes(rng, 1)
    other = Question(
        f"Which number opens the {place}?", "", (number,), evidence=(_code(place, number),)
    )
    return haystack(tokenizer, tokens, [_code(place, number)], rng), [_ask(place, number), other]


def multi_key(tokenizer: Any, tokens: int, rng: random.Random) -> Made:
    """Eight sentences that differ in a name and a number; two are asked about."""
    codes = _codes(rng, 8)
    text = haystack(tokenizer, tokens, [_code(*one) for one in codes], rng)
    return text, [_ask(*one) for one in codes[:2]]


def multi_value(tokenizer: Any, tokens: int, rng: random.Random) -> Made:
    """Three numbers of one name, in three places; all of them are asked for."""
    (place, first), (other, number) = _codes(rng, 2)
    values = [first, _number(rng), _number(rng)]
    # Another place has a code, too: not every number is an answer.
    told = [f"One of the access codes of the {place} is {value}." for value in values]
    text = haystack(tokenizer, tokens, [*told, _code(other, number)], rng)
    wanted = f"What are the three access codes of the {place}?"
    return text, [Question(wanted, "", parts=tuple(values), evidence=tuple(told))]


def multi_query(tokenizer: Any, tokens: int, rng: random.Random) -> Made:
    """Four names with a number each; two of them are asked about at once."""
    codes = _codes(rng, 4)
    text = haystack(tokenizer, tokens, [_code(*one) for one in codes], rng)
    (place, number), (other, second) = codes[:2]
    wanted = f"What is the access code of the {place}, and what is that of the {other}?"
    told = tuple(_code(*one) for one in codes[:2])
    return text, [Question(wanted, "", parts=(number, second), evidence=told)]


def variables(tokenizer: Any, tokens: int, rng: random.Random) -> Made:
    """Two chains of variables, each set to the one before; all of one chain are asked for."""
    letters = rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 2 * CHAIN)
    names = [f"{letter}{rng.randint(10, 99)}" for letter in letters]
    chains, values = (names[:CHAIN], names[CHAIN:]), (_number(rng), _number(rng))
    steps = [
        [f"Set the variable {mine[0]} to {value}."]
        + [f"Set the variable {b} to the value of {a}." for a, b in pairwise(mine)]
        for mine, value in zip(chains, values, strict=True)
    ]  # fmt: skip
    # In turns, so that no passage holds a whole chain.
    mixed = [step for pair in zip(*steps, strict=True) for step in pair]
    text = haystack(tokenizer, tokens, mixed, rng, ordered=True)
    wanted = f"Which {CHAIN} variables have the value {values[0]}?"
    return text, [Question(wanted, "", parts=tuple(chains[0]), evidence=tuple(steps[0]))]


def common_words(tokenizer: Any, tokens: int, rng: random.Random) -> Made:
    """A list of words, three of which stand there ten times as often as the others."""
    words = rng.sample(WORDS, len(WORDS))
    common, rare = words[:COMMON], words[COMMON:]
    # As often as the text has room for: what is to be counted stays the same share.
    once = common * 10 + rare
    turns = max(2, tokens // len(encode(tokenizer, _list(once))))
    # Numbers of lines grow longer.
    while turns > 2 and len(encode(tokenizer, _list(once * turns))) > 1.1 * tokens:
        turns -= 1
    listed = once * turns
    rng.shuffle(listed)
    assert {word for word, _ in Counter(listed).most_common(COMMON)} == set(common)
    wanted = f"Which {COMMON} words stand in the list most often?"
    return _list(listed), [Question(wanted, "", parts=tuple(common))]


def _list(words: list[str]) -> str:
    return "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))


KINDS: dict[str, Callable[[Any, int, random.Random], Made]] = {
    "needle": needle,
    "multi-key": multi_key,
    "multi-value": multi_value,
    "multi-query": multi_query,
    "variables": variables,
    "common words": common_words,
    "conversation": conversation,
}
"""What is asked, by name: each makes a document of about so many tokens, and its questions."""
