from __future__ import annotations

import cmr
from cmr.cli.app import app
from cmr.cli.chat import Conversation
from cmr.cli.common import Speaker
from tests.cli.conftest import TemplateTokenizer


def chat(runner, lines, *arguments):
    return runner.invoke(app, ["chat", *map(str, arguments)], input="\n".join(lines) + "\n")


def test_one_cache_and_one_text_run_through_all_turns(runner, fake):
    fake.tokenizer = TemplateTokenizer()
    result = chat(runner, ["hello", "again", "/quit"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("the answer é") == 2
    (first, options), (second, later) = fake.model.calls
    assert options["past_key_values"] is None
    assert later["past_key_values"] == "cache 1"
    said = fake.tokenizer.decode(second[0])
    # What was fed stays a prefix, so that the cache stays true.
    assert said.startswith(fake.tokenizer.decode(first[0]) + "the answer é<end>")
    assert said == "[user]hello[assistant]the answer é<end>[user]again[assistant]"


def test_without_a_template_turns_are_plain(runner, fake):
    chat(runner, ["hello", "again"])
    said = fake.tokenizer.decode(fake.model.calls[1][0][0])
    assert said == "User: hello\nAssistant:the answer é<end>\nUser: again\nAssistant:"


def test_the_end_of_input_ends_it(runner, fake):
    result = runner.invoke(app, ["chat"], input="")
    assert result.exit_code == 0
    assert fake.model.calls == []
    assert fake.memory.detached


def test_commands_are_not_sent_to_the_model(runner, fake):
    result = chat(
        runner, ["/stats", "/recalled", "/nonsense", "/[/dim]", "", "hi", "/recalled", "/quit"]
    )
    assert len(fake.model.calls) == 1
    assert "recalls 7" in result.stdout
    assert "read nothing" in result.stdout
    assert "unknown command /nonsense" in result.stdout
    assert "a passage that was read" in result.stdout


def test_documents_are_read_first(runner, fake, document):
    result = chat(runner, ["/quit"], "--document", document, "--session", "anna")
    assert fake.memory.log == ["session anna True", "read"]
    assert "read book.txt: 360 tokens" in result.stdout


def test_the_real_models_window_stays_bounded_and_memory_grows(smollm2):
    model, tokenizer = smollm2
    said: list[str] = []
    with cmr.attach(model, tokenizer=tokenizer, window=64, budget=1024) as memory:
        conversation = Conversation(Speaker(model, tokenizer, memory, max_new_tokens=4))
        for turn in range(4):
            before = conversation.tokens
            said.clear()
            answer = conversation.say(f"Turn {turn}. " + "The bees fly. " * 20, said.append)
            assert "".join(said).strip() == answer.text.strip()
            assert conversation.tokens > before + 80
        held = conversation.tokens - memory.tokens
        # Sinks, the window, and at most a block that has not left yet.
        assert memory.tokens > 0
        assert held <= 4 + 64 + 32
