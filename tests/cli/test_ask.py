from __future__ import annotations

import pytest

from cmr.cli.app import app
from tests.cli.conftest import TemplateTokenizer


def ask(runner, *arguments):
    return runner.invoke(app, ["ask", *map(str, arguments)])


def failed(result) -> str:
    """The one line on stderr of a command that a user must mend."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def test_it_reads_then_answers_and_shows_what_was_recalled(runner, fake, document):
    result = ask(runner, "--document", document, "--question", "Who?", "--question", "Where?")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("the answer é") == 2
    assert "Who?" in result.stdout and "Where?" in result.stdout
    assert "1,200–1,264" in result.stdout and "3.25" in result.stdout
    assert "a passage that was read" in result.stdout
    assert fake.memory.tokens == 20 * 18
    assert fake.memory.detached


def test_options_reach_the_memory_and_the_model(runner, fake, document):
    result = ask(
        runner, "--document", document, "--question", "Q", "--session", "anna",
        "--window", 256, "--budget", 4096, "--memory-weight", "0.25", "--max-new-tokens", 5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert fake.memory.overrides == {"window": 256, "budget": 4096, "memory_weight": 0.25}
    assert fake.memory.log == ["session anna True", "read"]
    assert "the \n" in result.stdout or "the\n" in result.stdout
    assert "the answer" not in result.stdout


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_model_that_was_not_calibrated_is_told_of(runner, fake, document, calibrated):
    fake.model.calibrated = calibrated
    result = ask(runner, "--document", document, "--question", "Q")
    assert result.exit_code == 0
    assert ("cmr calibrate" in result.stdout) is not calibrated


def test_without_a_template_the_question_is_plain(runner, fake, document):
    ask(runner, "--document", document, "--question", "Who?")
    assert fake.tokenizer.decode(fake.model.calls[0][0][0]) == "Question: Who?\nAnswer:"


def test_the_chat_template_is_used_if_there_is_one(runner, fake, document):
    fake.tokenizer = TemplateTokenizer()
    ask(runner, "--document", document, "--question", "Who?")
    assert fake.tokenizer.decode(fake.model.calls[0][0][0]) == "[user]Who?[assistant]"


def test_a_document_given_twice_is_read_once(runner, fake, document):
    ask(runner, "--document", document, "--document", document, "--question", "Who?")
    assert fake.memory.log == ["read"]


def test_a_missing_file_is_one_line(runner, fake, tmp_path):
    line = failed(ask(runner, "--document", tmp_path / "no.txt", "--question", "Q"))
    assert "no.txt: no such file" in line
    assert fake.memory is None


def test_a_folder_is_one_line(runner, fake, tmp_path):
    assert "is a folder" in failed(ask(runner, "--document", tmp_path, "--question", "Q"))


def test_an_empty_document_is_one_line(runner, fake, tmp_path):
    (tmp_path / "e.txt").write_text(" \n ")
    line = failed(ask(runner, "--document", tmp_path / "e.txt", "--question", "Q"))
    assert "e.txt: the document is empty" in line


def test_bytes_that_are_no_text_are_one_line(runner, fake, tmp_path):
    (tmp_path / "b.bin").write_bytes(b"ab\xff\xfe")
    assert "not UTF-8" in failed(ask(runner, "--document", tmp_path / "b.bin", "--question", "Q"))


def test_an_empty_question_is_one_line(runner, fake, document):
    assert "--question" in failed(ask(runner, "--document", document, "--question", " "))


@pytest.mark.parametrize("weight", ["2", "-0.1", "much", "nan"])
def test_a_weight_outside_its_range_is_one_line(runner, fake, document, weight):
    line = failed(ask(runner, "--document", document, "--question", "Q", "--memory-weight", weight))
    assert "from 0 to 1" in line and weight in line


def test_a_model_that_does_not_exist_is_one_line(runner, fake, document, tmp_path):
    line = failed(
        ask(runner, "--document", document, "--question", "Q", "--model", tmp_path / "none")
    )
    assert "none: no such folder" in line


def test_settings_that_are_not_given_are_left_to_the_memory(runner, fake, document):
    ask(runner, "--document", document, "--question", "Q")
    assert fake.memory.overrides == {}


def test_budgets_are_tokens_or_sizes(runner, fake, document):
    ask(
        runner, "--document", document, "--question", "Q", "--budget", "1.5GB",
        "--working-budget", "64_000", "--long-term-budget", "200 MiB",
    )  # fmt: skip
    assert fake.memory.overrides == {
        "budget": "1.5GB",
        "working_budget": 64_000,
        "long_term_budget": "200 MiB",
    }


@pytest.mark.parametrize("option", ["--budget", "--working-budget", "--long-term-budget"])
@pytest.mark.parametrize("value", ["2 gallons", "-5"])
def test_a_budget_that_is_none_is_one_line(runner, fake, document, option, value):
    line = failed(ask(runner, "--document", document, "--question", "Q", option, value))
    assert line.startswith(f"error: {option}: ") and value in line
    assert fake.memory is None


def test_nothing_to_read_or_nothing_to_do_is_one_line(runner, fake, document):
    assert "--document" in failed(ask(runner, "--question", "Q"))
    assert "--save" in failed(ask(runner, "--document", document))
    assert fake.memory is None


def test_signs_of_markup_are_shown_as_they_are(runner, fake, document):
    path = document.rename(document.with_name("[bold]a[x].txt"))
    result = ask(runner, "--document", path, "--question", "What is [/dim] [red]?")
    assert result.exit_code == 0, result.output
    assert "read [bold]a[x].txt:" in result.stdout and "What is [/dim] [red]?" in result.stdout
