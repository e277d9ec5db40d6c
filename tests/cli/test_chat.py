from __future__ import annotations

from cmr.cli.app import app
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
    result = chat(runner, ["/stats", "/recalled", "/nonsense", "", "hi", "/recalled", "/quit"])
    assert len(fake.model.calls) == 1
    assert "recalls 7" in result.stdout
    assert "read nothing" in result.stdout
    assert "unknown command /nonsense" in result.stdout
    assert "a passage that was read" in result.stdout


def test_documents_are_read_first(runner, fake, document):
    result = chat(runner, ["/quit"], "--document", document, "--session", "anna")
    assert fake.memory.log == ["session anna True", "read"]
    assert "read book.txt: 360 tokens" in result.stdout
