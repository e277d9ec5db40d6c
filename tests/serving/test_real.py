"""Told in one request, answered in the next one of that session alone, on the small real model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.serving.served import served

FACT = "The meeting with Mr Harlow is on Thursday at the town hall."
QUESTION, ANSWER = "On which day is the meeting with Mr Harlow?", "Thursday"


def test_told_in_one_request_and_answered_in_the_next(smollm2: tuple[Any, Any]) -> None:
    with served(*smollm2, attached={}) as server:

        def answer(text: str, session: str, tokens: int) -> Any:
            return server.client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": text}],
                max_tokens=tokens,
                user=session,
            )

        answer(FACT, "anna", 2)
        with ThreadPoolExecutor(2) as pool:  # in one batch
            told, other = pool.map(lambda name: answer(QUESTION, name, 12), ("anna", "ben"))
        assert ANSWER in told.choices[0].message.content
        assert any(FACT in passage["text"] for passage in told.memory["recalled"])
        assert ANSWER not in other.choices[0].message.content and not other.memory["recalled"]
