"""`cmr ask --url` against a server that runs, and what is said where none does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import transformers

from cmr.cli.app import app
from cmr.cli.talk import remote
from tests.cli.test_ask import failed
from tests.serving.served import TEMPLATE, served

TEXT = "The secret of Ada is lavender in the north tower. " * 12


@pytest.fixture(scope="module")
def server(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with served(model, tokenizer) as found:
        yield found


@pytest.fixture
def ask(runner, server, monkeypatch):
    """Runs the command against the server; loading a model here would fail the test."""
    server.idle()
    server.memory.clear()
    monkeypatch.setattr("cmr.cli.common.load_model", None)
    url = str(server.http.base_url)

    def run(*words):
        words = [*map(str, words), "--max-new-tokens", "4"]
        return runner.invoke(app, ["ask", "--url", url, *words])

    return run


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def test_a_document_is_read_once_and_asked_about(ask, server, book, monkeypatch):
    monkeypatch.setattr(remote, "_PIECE", 100)
    first = ask("--document", book, "--question", "Where is the lavender of Ada?")
    assert first.exit_code == 0, first.output
    assert "read 1 document: 600 tokens" in first.stdout
    assert "A " in first.stdout and "4 tokens in" in first.stdout
    (name,) = server.memory.sessions
    assert name.startswith("local/ask-") and not name.endswith(".reading")
    assert TEXT[:300] in server.stored(name.removeprefix("local/"))
    held = server.memory.tokens
    again = ask("--document", book, "--question", "Who?")
    assert again.exit_code == 0, again.output
    assert "has read that before" in again.stdout and "document" not in again.stdout
    # A question is no part of what it asks about.
    server.idle()
    assert server.memory.tokens == held and server.memory.sessions == [name]
    assert "lavender" in first.stdout


def test_what_was_read_by_half_is_read_anew(ask, server, book, monkeypatch):
    monkeypatch.setattr(remote, "_PIECE", 100)
    post = remote.Server.post

    def breaking(self, path, body):
        if server.memory.tokens:
            raise KeyboardInterrupt
        return post(self, path, body)

    with monkeypatch.context() as patch:
        patch.setattr(remote.Server, "post", breaking)
        assert ask("--document", book, "--question", "Who?").exit_code == 130
    (name,) = server.memory.sessions
    assert name.endswith(".reading")
    assert ask("--document", book, "--question", "Who?").exit_code == 0
    (name,) = server.memory.sessions
    assert TEXT in server.stored(name.removeprefix("local/")) + TEXT[-30:]


def test_a_session_of_the_servers_is_asked_by_its_name(ask, server, book):
    assert ask("--session", "ada", "--document", book, "--question", "Who?").exit_code == 0
    assert server.memory.sessions == ["local/ada"]
    result = ask("--session", "ada", "--question", "Where is it?")
    assert result.exit_code == 0 and "Where is it?" in result.stdout
    line = failed(ask("--session", "nobody", "--question", "Who?"))
    assert "nobody: the server has none" in line and "--document" in line
    assert server.memory.sessions == ["local/ada"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--question", "Q"], "--session"),
        (["--session", "a b", "--document", "BOOK", "--question", "Q"], "--url"),
        (["--session", "ada"], "--question"),
        (["--document", "BOOK", "--question", "Q", "--window", "64"], "--window: with --url"),
        (["--document", "BOOK", "--question", "Q", "--model", "x"], "--model: with --url"),
        (["--document", "BOOK", "--question", "Q", "--save", "x", "--force"], "with --url"),
    ],
)
def test_what_the_server_decides_cannot_be_given_here(ask, server, book, words, said):
    line = failed(ask(*(book if word == "BOOK" else word for word in words)))
    assert said in line
    assert not server.memory.sessions


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "`cmr serve` starts one"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000 expected"),
        ("ftp://here", "http://127.0.0.1:8000 expected"),
    ],
)
def test_where_no_server_is_it_is_one_line(runner, book, url, said):
    words = ["ask", "--url", url, "--document", str(book), "--question", "Q"]
    line = failed(runner.invoke(app, words))
    assert said in line and url in line


def test_a_key_is_taken_from_the_environment(runner, tiny_model, book, tmp_path, monkeypatch):
    from cmr.serving.keys import make_key

    keys = tmp_path / "keys"
    key = make_key(keys, "acme", ["use", "admin"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with served(model, tokenizer, keys=keys) as found:
        words = ["ask", "--url", f"{found.http.base_url}/v1/", "--document", str(book)]
        words += ["--question", "Q", "--max-new-tokens", "2"]
        assert "CMR_SERVER_KEY" in failed(runner.invoke(app, words))
        monkeypatch.setenv("CMR_SERVER_KEY", key)
        result = runner.invoke(app, words)
        assert result.exit_code == 0, result.output
        assert found.memory.sessions[0].startswith("acme/ask-")


def test_no_torch_is_loaded_for_it():
    code = "import sys, cmr.cli.talk.remote; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
