"""``cmr ask`` and ``cmr chat`` with saved memories: a real tiny model through the real ``main``."""

from __future__ import annotations

import io
import sys

import pytest

from cmr.memory.store import Saved
from tests.cli.saved import CITY, OTHER


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch):
    """A passphrase costs half a second by design; how much is stored with what it encrypts."""
    monkeypatch.setattr("cmr.memory.store.vault.SCRYPT", {"n": 1 << 10, "r": 8, "p": 1})


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(OTHER * 4 + CITY + OTHER * 4)
    return path


def failed(result) -> str:
    """The one line on stderr of a command that a user must mend."""
    assert result.code == 2, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    return lines[0]


def said(result) -> str:
    assert result.code == 0, result
    return " ".join(result.out.split())


def test_what_is_read_is_saved_without_a_question_and_answers_later(cmr, book, tmp_path):
    mem = tmp_path / "mem"
    first = said(cmr("ask", "--document", book, "--save", mem))
    assert "saved" in first and "not encrypted" in first
    held = len(Saved.open(mem))
    assert held > 10
    again = said(cmr("ask", "--load", mem, "--question", "Who?", "--max-new-tokens", 3))
    assert f"in {held} blocks of 1 session from {mem.name}" in again.replace(f"{tmp_path}/", "")
    assert "Q Who?" in again


def test_the_same_folder_again_writes_only_what_is_new(cmr, book, tmp_path):
    mem = tmp_path / "mem"
    cmr("ask", "--document", book, "--save", mem, "--window", 128)
    held, files = len(Saved.open(mem)), {path.name for path in mem.glob("blocks-*")}
    book.write_text(OTHER)  # less than what is there already, which so stays as it is
    result = cmr("ask", "--load", mem, "--save", mem, "--document", book)
    assert "there already" in said(result)
    saved = Saved.open(mem)
    assert len(saved) > held
    assert files <= {path.name for path in mem.glob("blocks-*")}
    assert saved.header["config"]["window"] == 128  # as saved: the default is another


def test_settings_given_with_load_take_the_place_of_the_saved_ones(cmr, book, tmp_path):
    mem = tmp_path / "mem"
    cmr("ask", "--document", book, "--save", mem, "--window", 128, "--budget", 2048)
    said(cmr("ask", "--load", mem, "--save", mem, "--window", 64, "--budget", 4096))
    config = Saved.open(mem).header["config"]
    assert config["window"] == 64 and config["memory"]["budget"] == 4096


def test_a_budget_too_small_for_what_is_saved_is_one_line(cmr, book, tmp_path):
    mem = tmp_path / "mem"
    cmr("ask", "--document", book, "--save", mem)
    line = failed(cmr("ask", "--load", mem, "--question", "Q", "--budget", 64))
    assert "budget: room for" in line and str(mem) in line


def test_a_memory_that_was_not_loaded_is_not_replaced_unasked(cmr, book, tmp_path):
    mem = tmp_path / "mem"
    cmr("ask", "--document", book, "--save", mem, "--session", "ada")
    line = failed(cmr("ask", "--document", book, "--save", mem, "--session", "bo"))
    assert "--load" in line and "--force" in line
    said(cmr("ask", "--document", book, "--save", mem, "--session", "bo", "--force"))
    assert [entry["name"] for entry in Saved.open(mem).header["sessions"]] == ["bo"]


@pytest.mark.parametrize("there", ["file", "others"])
def test_a_place_that_cannot_take_it_is_found_before_anything_is_read(cmr, book, tmp_path, there):
    (tmp_path / "others").mkdir()
    for path in (tmp_path / "file", tmp_path / "others" / "letter.txt"):
        path.write_text("mine")
    result = cmr("ask", "--document", book, "--save", tmp_path / there)
    assert f"--save {tmp_path / there}" in failed(result)
    assert "loading" not in result.out


def test_sessions_stay_apart_and_all_are_kept(cmr, book, tmp_path):
    mem = tmp_path / "mem"
    cmr("ask", "--document", book, "--save", mem, "--session", "ada")
    assert "session ada, the only one" in said(cmr("ask", "--load", mem, "--question", "Q"))
    said(cmr("ask", "--load", mem, "--save", mem, "--session", "bo", "--document", book))
    assert [entry["name"] for entry in Saved.open(mem).header["sessions"]] == ["ada", "bo"]
    line = failed(cmr("ask", "--load", mem, "--question", "Q"))
    assert "--session" in line and "'ada', 'bo'" in line
    line = failed(cmr("ask", "--load", mem, "--question", "Q", "--session", "eve"))
    assert "--session eve" in line and "'ada', 'bo'" in line


def test_another_model_is_one_line(cmr, book, tmp_path, other_model):
    mem = tmp_path / "mem"
    cmr("ask", "--document", book, "--save", mem)
    line = failed(cmr("ask", "--load", mem, "--question", "Q", "--model", other_model))
    assert "another model" in line
    # The small model is not even loaded for a memory by another name.
    result = cmr("ask", "--load", mem, "--question", "Q", "--model", None)
    assert "'tiny'" in failed(result) and "--model" in result.err and "loading" not in result.out


@pytest.mark.parametrize("secret", [b"a phrase of words\n", bytes(range(200, 232))])
def test_a_key_file_encrypts_and_opens(cmr, book, tmp_path, secret):
    mem, key, wrong = tmp_path / "mem", tmp_path / "key", tmp_path / "wrong"
    key.write_bytes(secret)
    wrong.write_bytes(secret[:-2] + b"x\n")
    assert ", encrypted" in said(cmr("ask", "--document", book, "--save", mem, "--key-file", key))
    assert CITY.encode() not in b"".join(path.read_bytes() for path in mem.glob("*"))
    assert "--key-file" in failed(cmr("ask", "--load", mem, "--question", "Q"))
    line = failed(cmr("ask", "--load", mem, "--question", "Q", "--key-file", wrong))
    assert "key" in line
    said(cmr("ask", "--load", mem, "--save", mem, "--document", book, "--key-file", key))


def test_the_environments_passphrase_opens_what_needs_one(cmr, book, tmp_path, monkeypatch):
    clear, sealed = tmp_path / "clear", tmp_path / "sealed"
    said(cmr("ask", "--document", book, "--save", clear))
    monkeypatch.setenv("CMR_MEMORY_KEY", "words of mine")
    said(cmr("ask", "--load", clear, "--question", "Q", "--max-new-tokens", 1))
    assert ", encrypted" in said(cmr("ask", "--load", clear, "--save", sealed))
    said(cmr("memory", "inspect", sealed))
    key = tmp_path / "key"
    key.write_text("words of mine")
    assert "not encrypted" in failed(cmr("memory", "inspect", clear, "--key-file", key))
    monkeypatch.delenv("CMR_MEMORY_KEY")
    assert "CMR_MEMORY_KEY" in failed(cmr("memory", "inspect", sealed))
    said(cmr("memory", "inspect", sealed, "--key-file", key))


@pytest.mark.parametrize("content", [b"", b"two\nlines\n", bytes(31), b"\n"])
def test_what_is_no_key_is_one_line(cmr, book, tmp_path, content):
    key = tmp_path / "key"
    key.write_bytes(content)
    result = cmr("ask", "--document", book, "--save", tmp_path / "mem", "--key-file", key)
    assert "32 bytes, or a passphrase" in failed(result)
    assert not (tmp_path / "mem").exists()


def test_nothing_saved_there_and_a_damaged_file_are_one_line(cmr, book, tmp_path):
    mem = tmp_path / "mem"
    assert "no saved memory at" in failed(cmr("ask", "--load", mem, "--question", "Q"))
    cmr("ask", "--document", book, "--save", mem)
    shard = next(mem.glob("blocks-*"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert shard.name in failed(cmr("ask", "--load", mem, "--question", "Q"))


def test_a_chat_is_saved_to_its_last_word(cmr, tmp_path, monkeypatch):
    mem = tmp_path / "mem"
    lines = ["The password of the well is marigold.", "And now? " * 20, "zebra"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, "/quit"]) + "\n"))
    said(cmr("chat", "--save", mem, "--window", 64, "--max-new-tokens", 8))
    out = tmp_path / "all.txt"
    said(cmr("memory", "export", mem, "--out", out))
    written = out.read_text()
    for line in lines:
        assert f"User: {line.strip()}"[5:] in written
    assert written.count("marigold") == 1 and written.count("zebra") == 1
