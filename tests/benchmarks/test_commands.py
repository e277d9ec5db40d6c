"""Every benchmark that can be run explains itself, and says in one line what was wrong."""

from __future__ import annotations

import argparse
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run, whole


def runnable() -> list[str]:
    """Every module under `benchmarks` that `python -m` runs."""
    found = []
    for path in sorted((rows.ROOT / "benchmarks").rglob("*.py")):
        if "\nif __name__ ==" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(rows.ROOT).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__main__"))
    return found


COMMANDS = runnable()
README = rows.ROOT / "benchmarks" / "README.md"

WRONG = {
    "a value": ("recall", "--tokens", "100"),
    "a setting": ("recall", "--set", "frogs=1"),
    "a setting's value": ("cost", "--set", "blocks=many"),
    "a setting without a value": ("recall.needle", "--set", "blocks"),
    "a name": ("retrieval", "--systems", "crystal_ball"),
    "names that go together": ("recall", "--systems", "memory_text"),
    "a run": ("recall.report", "never-run"),
    "a run of conversations": ("conversations.report", "never-run"),
    "a missing file": ("ops.kernel_rows", "missing.json"),
    "a file that is something else": ("ops.kernel_rows", "pyproject.toml"),
    "a file for a folder": ("users.stress", "--results", "pyproject.toml"),
    "a folder without rows": ("recall.needle_plot", "--results", "docs"),
    "a folder that is no checkout": ("cost.versions", "--other", "docs"),
    "two places for the rows": ("cost.hops", "--record", "--results", "docs"),
    "a folder without conversations": ("conversations", "--data", "docs"),
    "a weight": ("cost.perplexity", "--weights", "much"),
    "an architecture": ("compiled", "--on", "sm_1"),
}


def start(module: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a module in this process as `python -m` does; gives its exit code."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.setattr(rows, "into", rows.into)
    monkeypatch.chdir(rows.ROOT)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as left:
        warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert isinstance(left.value.code, int)
    return left.value.code


def test_all_of_them_are_looked_at() -> None:
    assert {"benchmarks.recall", "benchmarks.cost.hops", "benchmarks.compiled"} <= set(COMMANDS)
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize("module", COMMANDS)
def test_help_explains_and_runs_nothing(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(module, "--help", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m {module} ")
    assert "options:" in said and len(said.split("\n\n")[1]) > 20


@pytest.mark.parametrize("module", COMMANDS)
def test_an_unknown_option_is_a_usage_error(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(module, "--no-such-option", monkeypatch=monkeypatch) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_was_wrong_is_the_last_line(
    case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *words = case
    if module == "compiled":
        pytest.importorskip("triton")
    assert start(f"benchmarks.{module}", *words, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(f"python -m benchmarks.{module}: error: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "folder"),
    [([], rows.OWN), (["--record"], rows.RESULTS), (["--results", "there"], Path("there"))],
)
def test_rows_of_a_reader_stay_apart(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "into", rows.OWN)
    Parser("A benchmark.").parse_args(words)
    assert rows.into == folder


def test_git_ignores_the_rows_of_a_reader() -> None:
    if not (rows.ROOT / ".git").exists():
        pytest.skip("not a checkout")
    asked = ["git", "check-ignore", "-q", str(rows.OWN / "recall.jsonl")]
    assert subprocess.run(asked, cwd=rows.ROOT).returncode == 0


def test_a_run_says_where_its_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "into", tmp_path)
    monkeypatch.setattr(rows, "written", [])
    monkeypatch.chdir(tmp_path)
    run(lambda: [rows.append("made", {"a": 1}), rows.append("made", {"a": 2})])
    assert capsys.readouterr().out == "rows: made.jsonl\n"
    assert rows.load("made", tmp_path) == [{"a": 1}, {"a": 2}]


def test_the_rows_of_runs_are_those_committed_and_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, own = tmp_path / "results", tmp_path / "own"
    monkeypatch.setattr(rows, "RESULTS", committed)
    monkeypatch.setattr(rows, "into", own)
    rows.append("made", {"run": "a"}, {"run": "b"}, folder=committed)
    rows.append("made", {"run": "c"})
    assert rows.of_runs("made", ["a", "c"]) == [{"run": "a"}, {"run": "c"}]


@pytest.mark.parametrize(
    ("spec", "started", "module"),
    [
        ("benchmarks.cost.hops", "ignored", "benchmarks.cost.hops"),
        ("benchmarks.cost.__main__", "ignored", "benchmarks.cost"),
        (None, "benchmarks/cost/hops.py", "benchmarks.cost.hops"),
        (None, "benchmarks/cost/__main__.py", "benchmarks.cost"),
    ],
)
def test_a_row_tells_the_command_without_the_machine(
    spec: str | None, started: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = None if spec is None else SimpleNamespace(name=spec)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=described))
    argv = [str(rows.ROOT / started), "--label", "x", "--results", str(rows.ROOT / "there")]
    monkeypatch.setattr(sys, "argv", argv)
    assert rows.command() == f"python -m {module} --label x --results there"


def test_errors_of_ours_keep_their_traceback() -> None:
    def broken() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(broken)

    def wrong() -> None:
        raise UsageError("a word")

    with pytest.raises(SystemExit, match="2"):
        run(wrong)


def test_a_whole_number_says_what_it_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("A benchmark.", appends=False)
    parser.add_argument("--number", type=whole(2, 4))
    assert parser.parse_args(["--number", "4"]).number == 4
    for word in ("1", "5", "x", "-3"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--number={word}"])
        wanted = f"a whole number of at least 2 and at most 4 expected, got '{word}'"
        assert wanted in capsys.readouterr().err


class Parsed(Exception):
    """Raised in place of the work, once a command line was parsed."""


LISTED = re.findall(r"`python -m (benchmarks[^`]*)`", README.read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", LISTED)
def test_the_readme_has_command_lines_that_are_taken(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.setattr(rows, "into", rows.into)
    with warnings.catch_warnings(), pytest.raises(Parsed):
        warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
        runpy.run_module(line.split()[0], run_name="__main__", alter_sys=True)


def test_the_readme_lists_every_command() -> None:
    assert {line.split()[0] for line in LISTED} == set(COMMANDS)
