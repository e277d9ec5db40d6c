"""What a short request told is answered in the next one, on the small real model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline
from typer.testing import CliRunner

import cmr
from cmr.cli.app import app
from cmr.evaluation.prompts import chat

FACT = "The meeting with Mr Harlow is on Thursday at the town hall."
QUESTION, ANSWER = "On which day is the meeting with Mr Harlow?", "Thursday"
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}


def turn(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def asked(session: Any, tokenizer: Any, text: str) -> str:
    ids = torch.tensor([chat(tokenizer, text)])
    return str(tokenizer.decode(session.generate(ids, **GREEDY)[0, ids.shape[1] :]))


def test_through_generate(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer) as memory:  # as it always was
        anna = memory.session("anna", create=True)
        asked(anna, tokenizer, FACT)
        assert memory.tokens == 0
        assert ANSWER not in asked(anna, tokenizer, QUESTION)
    with cmr.attach(model, tokenizer=tokenizer, remember="all") as memory:
        anna, ben = (memory.session(name, create=True) for name in ("anna", "ben"))
        asked(anna, tokenizer, FACT)
        assert ANSWER not in asked(ben, tokenizer, QUESTION)
        text = "".join(block.text or "" for block in memory.inspect("anna"))
        assert text.startswith(FACT) and "<|im_" not in text and "assistant" not in text
        (found,) = anna.search(QUESTION, blocks=1)
        assert FACT in str(found.text) and found.positions[:3] == (0, 1, 2) and found.score > 0
        assert ANSWER in asked(anna, tokenizer, QUESTION)


def test_through_a_pipeline_that_is_sent_the_whole_conversation(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, remember="all") as memory:
        pipe, said = pipeline("text-generation", model=model, tokenizer=tokenizer), turn(FACT)
        with memory.session("anna", create=True):
            for text in ("Who is coming?", "Thank you."):
                said = pipe(said, **GREEDY)[0]["generated_text"] + turn(text)
            answer = pipe(turn(QUESTION), **GREEDY)[0]["generated_text"][-1]["content"]
        assert ANSWER in answer
        text = "".join(block.text or "" for block in memory.inspect("anna"))
        # The answers may say it again.
        assert text.partition(QUESTION)[0].count(FACT) == 1
        report = memory.session("anna").remember(said)
        assert 0 < report.new < 10 and report.known > 40


def test_through_what_is_remembered_without_an_answer(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, window=256) as memory:
        anna = memory.session("anna", create=True)
        messages = turn("Answer briefly.", "system") + turn(FACT)
        assert anna.remember(messages).new == len(tokenizer(FACT)["input_ids"])
        assert anna.remember(messages).new == 0
        assert "".join(block.text or "" for block in memory.inspect("anna")) == FACT
        reply = "Thank you, it is in the calendar."
        more = anna.remember(messages + turn(reply, "assistant") + turn("Good."))
        assert more.new == sum(len(tokenizer(text)["input_ids"]) for text in (reply, "Good."))
        assert more.known == len(tokenizer(FACT)["input_ids"])

        async def ask() -> str:
            return await asyncio.to_thread(asked, anna, tokenizer, QUESTION)

        assert ANSWER in asyncio.run(ask())


def test_absorbed_is_what_was_said(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    rows = [tokenizer.apply_chat_template(turn(text), add_generation_prompt=True, tokenize=False)
            for text in (FACT, "Hello.")]  # fmt: skip
    batch = tokenizer(rows, return_tensors="pt", padding=True, padding_side="left")
    with cmr.attach(model, tokenizer=tokenizer) as memory, torch.no_grad():
        memory.absorb(model(**batch, use_cache=True).past_key_values)
        for name, said in (("0", FACT), ("1", "Hello.")):
            assert "".join(block.text or "" for block in memory.inspect(name)) == said


@pytest.mark.parametrize("session", [[], ["--session", "anna"]], ids=["unnamed", "named"])
def test_through_the_chat_of_the_command_line(
    smollm2: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: list[str]
) -> None:
    monkeypatch.setattr("cmr.cli.common.load_smollm2", lambda: smollm2)
    folder = str(tmp_path / "talk")

    def talk(line: str, *options: str) -> str:
        words = ["chat", "--max-new-tokens", "24", *session, *options]
        result = CliRunner().invoke(app, words, input=f"{line}\n/quit\n")
        assert result.exit_code == 0, result.output
        return str(result.output)

    talk(FACT, "--save", folder)
    assert ANSWER in talk(QUESTION, "--load", folder)


def test_two_messages_that_begin_alike_are_both_stored_whole(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    told = [f"The number of the locker at the station is {n}." for n in (123456, 128899)]
    with cmr.attach(model, tokenizer=tokenizer, remember="all") as memory:
        anna = memory.session("anna", create=True)
        for message in told:
            anna.generate(torch.tensor([chat(tokenizer, message)]), max_new_tokens=1)
        text = "".join(block.text or "" for block in memory.inspect("anna"))
        assert all(message in text for message in told)
