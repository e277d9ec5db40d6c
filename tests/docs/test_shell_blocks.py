"""Every command line in the documents is one that the programs take.

`cmr ...` and `python -m ...` are parsed by the commands themselves and stop there; of the others
the files, extras and options that are ours are looked at.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import typer

from cmr.cli.app import app
from tests.docs.blocks import ROOT, blocks

OURS = re.compile(r"(?:^|/)(?:cmr|pytest|python3?|pip|pre-commit)$")
FOREIGN = {"nsys", "ncu", "git", "ruff", "mypy", "curl"}
"""Programs of others, of whose command lines only the part that starts ours is looked at."""


def lines() -> list[tuple[str, list[str]]]:
    """(where it stands, its words) of every command in the shell blocks."""
    found = []
    for block in blocks("bash"):
        joined = block.code.replace("\\\n", " ")
        for number, line in enumerate(joined.splitlines(), 1):
            found += [(f"{block.name}:{number}", words) for words in commands(line)]
    return found


def commands(line: str) -> list[list[str]]:
    """The words of each command in a line, without what stands behind `#`."""
    split = shlex.shlex(line, posix=True, punctuation_chars=";&")
    split.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in split:
        if word in (";", "&&"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def command(words: list[str]) -> list[str]:
    """The part of a command line that starts with a program of ours, without its variables."""
    for at, word in enumerate(words):
        if OURS.search(word):
            return [word.rpartition("/")[2], *words[at + 1 :]]
    return []


COMMANDS = [(where, command(words), words) for where, words in lines()]


def starting(program: str) -> list[list[str]]:
    return [ours for _, ours, _ in COMMANDS if ours and ours[0] == program]


def test_every_line_is_a_command_that_is_looked_at() -> None:
    unknown = [words for _, ours, words in COMMANDS if not ours and words[0] not in FOREIGN]
    assert unknown == []
    assert len(starting("cmr")) > 5 and len(starting("python")) > 5


@pytest.mark.parametrize("words", starting("cmr"), ids=" ".join)
def test_the_command_line_takes_it(words: list[str], tmp_path: Path) -> None:
    group = typer.main.get_command(app)
    context, rest = group.make_context("cmr", [], resilient_parsing=True), words[1:]
    while rest and hasattr(group, "resolve_command"):
        name, group, rest = group.resolve_command(context, rest)
        if not hasattr(group, "resolve_command"):
            group.make_context(name, rest, parent=context)
            return
        context = group.make_context(name, [], parent=context, resilient_parsing=True)
    pytest.fail(f"no command in {words}")


class Parsed(Exception):
    """Raised in place of the work, once a command line was parsed."""


@pytest.mark.parametrize(
    "words", [*starting("python"), *starting("python3")], ids=lambda words: " ".join(words)
)
def test_the_module_takes_its_arguments(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[1] == "...":
        return  # "any program": there is nothing to look at
    if words[1:3] == ["-m", "venv"]:
        assert len(words) == 4
        return
    script, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(Parsed):
        runpy.run_path(_file(script, monkeypatch), run_name="__main__")


def _file(script: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file that `python script` or `python -m script` runs."""
    if script.endswith(".py"):
        monkeypatch.syspath_prepend(str((ROOT / script).parent))
        return str(ROOT / script)
    found = importlib.util.find_spec(script)
    if found is not None and found.submodule_search_locations:
        found = importlib.util.find_spec(f"{script}.__main__")
    assert found is not None and found.origin is not None, f"no module {script}"
    return found.origin


@pytest.mark.parametrize("words", starting("pytest"), ids=" ".join)
def test_the_tests_it_names_are_there(words: list[str], pytestconfig: pytest.Config) -> None:
    known = {marker.partition(":")[0] for marker in pytestconfig.getini("markers")}
    for word, before in zip(words[1:], words, strict=False):
        if before == "-m":
            assert word.removeprefix("not ") in known
        elif "/" in word and not word.startswith("-"):
            assert list(ROOT.glob(word.rstrip("/"))), word


@pytest.mark.parametrize("words", starting("pip"), ids=" ".join)
def test_the_extras_and_files_it_names_are_there(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.MULTILINE)
    for word, before in zip(words[1:], words, strict=False):
        if before == "-c":
            assert (ROOT / word).is_file()
        wanted = re.fullmatch(r"(?:\.|cmr)\[([\w,]+)\]", word)
        assert wanted is None or set(wanted.group(1).split(",")) <= set(extras)
