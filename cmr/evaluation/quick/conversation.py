"""A conversation in which somebody says in passing what they like, and asks for it later."""

from __future__ import annotations

import random
from typing import Any

from cmr.evaluation.prompts import encode
from cmr.evaluation.questions import Question

# What is said, what it may be, and what is asked; each stands in a turn with other talk.
TOLD = (
    ("my favourite colour is {}", ("turquoise", "crimson", "purple", "orange"),
     "What is my favourite colour?"),
    ("I am allergic to {}", ("peanuts", "shellfish", "celery", "mustard"),
     "What am I allergic to?"),
    ("my dog is called {}", ("Biscuit", "Pepper", "Domino", "Waffle"), "What is my dog called?"),
    ("I play the {} in a small band", ("cello", "trumpet", "harp", "clarinet"),
     "Which instrument do I play?"),
    ("I always drink {} in the morning", ("cocoa", "black coffee", "green tea", "apple juice"),
     "What do I drink in the morning?"),
    ("I would love to travel to {}", ("Norway", "Portugal", "Japan", "Iceland"),
     "Which country would I love to travel to?"),
)  # fmt: skip
SUBJECTS = (
    ("the weather", "It rained all night and the street is full of puddles now."),
    ("the office", "We moved the desks around again and nobody finds the printer any more."),
    ("cooking", "I tried the soup from the new book and it needed far more salt than they say."),
    ("the garden", "The tomatoes are still green although it is already the end of August."),
    ("the train", "It was late again, and the people on the platform were not amused at all."),
    ("a film", "The story was thin but the pictures of the mountains were worth the ticket."),
    ("the neighbours", "They are building something in the yard and start before seven."),
    ("sleep", "I went to bed early and still woke up three times because of the heat."),
    ("a book", "I am half through and the author has not told us yet who the letter is from."),
    ("the bicycle", "The chain came off twice on the hill and my hands were black with oil."),
)
REPLIES = (
    "That sounds like a full day. Would you like to tell me more about it?",
    "I see. Small things like that can take up more time than one thinks.",
    "Thank you for telling me. How did it go on from there?",
    "I understand. Perhaps tomorrow will be a little calmer.",
)


def conversation(tokenizer: Any, tokens: int, rng: random.Random) -> tuple[str, list[Question]]:
    """Turns of about so many tokens, and two questions in the first person."""
    facts = [
        (said.format(value := rng.choice(values)), value, asked) for said, values, asked in TOLD
    ]
    turns: list[tuple[str, str]] = []
    length = 0
    # Some 40 tokens for each turn that tells something.
    while length < tokens - 40 * len(facts):
        (subject, story), reply = rng.choice(SUBJECTS), rng.choice(REPLIES)
        turns.append((f"About {subject} of day {len(turns) + 1}: {story}", reply))
        length += len(encode(tokenizer, _turn(*turns[-1])))
    for number, (said, _, _) in enumerate(facts):
        # All are told in the first three quarters, so that a window does not show them.
        share = 0.75 * (number + rng.random()) / len(facts)
        turns.insert(int(share * len(turns)), (f"By the way, {said}.", rng.choice(REPLIES)))
    questions = [
        Question(asked, "", (value,), evidence=(said,))
        for said, value, asked in rng.sample(facts, 2)
    ]
    return "".join(_turn(*turn) for turn in turns), questions


def _turn(said: str, reply: str) -> str:
    return f"user: {said}\nassistant: {reply}\n"
