from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import cmr
from cmr.cli.app import app
from cmr.cli.chat import Conversation
from cmr.cli.common import Speaker
from cmr.cli.talk.figures import as_json, as_table
from tests.cli.conftest import Memory, TemplateTokenizer


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
    assert "conversation 0 tokens" in " ".join(result.stdout.split())
    assert "read nothing" in result.stdout
    assert "unknown command /nonsense" in result.stdout
    assert "a passage that was read" in result.stdout


@pytest.mark.parametrize("end", ["/quit", "/exit"])
def test_help_is_a_command_and_so_are_both_words_for_the_end(runner, fake, end):
    said = " ".join(chat(runner, ["/help", end, "hi"]).stdout.split())
    assert said.count("/recalled what the last answer read") == 2 and "unknown" not in said
    assert not fake.model.calls


def test_stats_are_words_for_people_and_json_for_scripts(runner, fake):
    said = chat(runner, ["hi", "/stats", "/stats --json"]).stdout
    words = " ".join(said.split())
    assert "conversation 32 tokens" in words
    assert "1,024 tokens of 1 session, room for 4,096 (25% full), 20.0 MB" in words
    assert "recent 3 of 128 blocks, 20.0 MB" in words
    assert "searches 8, of which 6 found something to read (75%)" in words
    assert "forgotten" not in words and "paused" not in words
    (line,) = (line.removeprefix("> ") for line in said.splitlines() if "{" in line)
    found = json.loads(line)
    assert found["conversation_tokens"] == 32
    assert found["tiers"]["recent"]["blocks"] == 3 and found["recalls"] == 6


def test_what_went_and_what_rests_is_told(fake):
    memory = Memory(fake.model, fake.tokenizer, {})
    memory.evicted, memory.paused = 2, True
    stats = {**memory.stats(), "searches": 0}
    out = Console(file=io.StringIO(), width=100)
    out.print(as_table(5, stats))
    words = " ".join(out.file.getvalue().split())
    assert "forgotten 2 blocks" in words and "paused" in words and "none yet" in words


def test_the_real_memorys_figures_can_all_be_shown(smollm2):
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, window=64, budget=1024) as memory:
        stats = memory.stats()
    assert "room for 1,024" in "".join(as_table(3, stats).columns[1]._cells)
    assert json.loads(as_json(3, stats))["strategy"] == "maxsim"


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
