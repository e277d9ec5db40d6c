"""Ctrl-C while an answer is generated, in `ask` and in `chat`, and at the prompt of a chat."""

from __future__ import annotations

import signal

import pytest

import cmr
from cmr.cli.app import app
from cmr.cli.chat import Conversation
from cmr.cli.common import Speaker
from cmr.cli.talk import interrupts
from cmr.cli.talk.interrupts import stoppable
from tests.cli.conftest import EOS, Model


@pytest.fixture(autouse=True)
def heard():
    """A shell that runs the tests in the background has Ctrl-C ignored in them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(Model):
    """Gets a Ctrl-C behind its third token, of the answers that `when` names."""

    def __init__(self, when=(1,)):
        super().__init__()
        self.when = when

    def generate(self, input_ids, streamer, stopping_criteria=None, **options):
        (stop,) = stopping_criteria
        says = self.says
        if len(self.calls) + 1 in self.when:
            signal.raise_signal(signal.SIGINT)
            assert stop(input_ids, None).tolist() == [True]
            self.says = says[:3]
        try:
            return super().generate(input_ids, streamer=streamer, **options)
        finally:
            self.says = says


def test_in_a_chat_it_ends_the_answer_and_the_chat_goes_on(runner, fake):
    fake.model = Interrupted()
    result = runner.invoke(app, ["chat"], input="hello\nagain\n")
    assert result.exit_code == 0, result.output
    assert "the\n" in result.stdout and "stopped" in result.stdout
    assert "the answer é" in result.stdout
    # What was said until then belongs to the conversation.
    said = fake.tokenizer.decode(fake.model.calls[1][0][0])
    assert said.startswith("User: hello\nAssistant:the<end>\nUser: again")


def test_in_ask_it_shows_what_there_is_and_asks_no_more(runner, fake, document):
    fake.model = Interrupted()
    words = ["ask", "--document", str(document), "--question", "Who?", "--question", "When?"]
    result = runner.invoke(app, words)
    assert result.exit_code == 130
    assert len(fake.model.calls) == 1
    assert "A the" in result.stdout and "stopped" in result.stdout
    assert "tokens in memory" in result.stdout
    assert result.stderr.endswith("interrupted\n")


def test_what_was_read_is_saved_all_the_same(cmr, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("The harbour is closed today. " * 40)
    answer = Speaker.answer

    def interrupted(self, ids, *args, **more):
        signal.raise_signal(signal.SIGINT)
        return answer(self, ids, *args, **more)

    monkeypatch.setattr(Speaker, "answer", interrupted)
    result = cmr("ask", "--document", text, "--question", "Who?", "--save", tmp_path / "mem",
                 "--window", 64, "--max-new-tokens", 40)  # fmt: skip
    assert result.code == 130, result.err
    assert "1 token in" in result.out and "stopped" in result.out
    assert (tmp_path / "mem" / "manifest.json").is_file()


def test_presses_within_a_second_are_one_and_a_later_one_interrupts(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with stoppable() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.asked
        monkeypatch.setattr(interrupts, "PATIENCE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_at_the_prompt_the_second_one_in_a_row_ends_the_chat(runner, fake, monkeypatch):
    lines = iter([KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never"])

    def typed(*_):
        line = next(lines)
        if line is KeyboardInterrupt:
            raise line
        return line

    monkeypatch.setattr("rich.console.Console.input", typed)
    result = runner.invoke(app, ["chat"])
    assert result.exit_code == 0, result.output
    assert len(fake.model.calls) == 1
    assert result.stdout.count("Ctrl-C once more") == 2
    assert next(lines) == "never"


def test_the_real_model_stops_behind_the_token_and_goes_on(smollm2):
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, window=64, budget=1024) as memory:
        conversation = Conversation(Speaker(model, tokenizer, memory, max_new_tokens=12))
        pieces: list[str] = []

        def heard(text: str) -> None:
            pieces.append(text)
            if len(pieces) == 3:
                signal.raise_signal(signal.SIGINT)

        found = conversation.say("Tell me a long story about the sea.", heard)
        assert found.stopped and 3 <= len(found.token_ids) < 12
        assert found.text.strip() == "".join(pieces).strip()
        assert EOS not in found.token_ids
        held = conversation.tokens
        again = conversation.say("And then?", lambda _: None)
        assert not again.stopped and again.token_ids
        assert conversation.tokens > held + len(again.token_ids)
        ids = conversation._ids
        assert ids[0, held - len(found.token_ids) : held].tolist() == found.token_ids
