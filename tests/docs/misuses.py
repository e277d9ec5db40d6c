"""Mistakes of all kinds, made on purpose: what is printed becomes `docs/misuse.md`.

`python -m tests.docs.misuses` writes that page anew; `test_misuse.py` holds it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers

import cmr
from cmr.cli import main
from cmr.integration.attach import memory_of
from tests.cli.saved import build

PAGE = Path(__file__).parents[2] / "docs" / "misuse.md"
FOLDER = "/home/ada"
"""What the page calls the folder in which the mistakes are made."""

COMMANDS = (
    # What there is to do
    "cmr aks",
    "cmr ask",
    "cmr ask --document book.txt",
    "cmr ask --document book.txt --question ''",
    "cmr ask --document book.txt --question Who? --wndow 64",
    "cmr ask --document book.txt --question Who? --window wide",
    "cmr ask --document book.txt --question Who? --window 8",
    "cmr ask --document book.txt --question Who? --budget '2 gallons'",
    "cmr ask --document book.txt --question Who? --memory-weight 2",
    "cmr ask --document book.txt --question Who? --session ''",
    "cmr ask --document -",
    "cmr chat --document -",
    # Documents
    "cmr ask --document bok.txt --question Who?",
    "cmr ask --document chapters --question Who?",
    "cmr ask --document empty.txt --question Who?",
    "cmr ask --document old.txt --question Who?",
    "cmr ask --document program --question Who?",
    "cmr ask --document letter.docx --question Who?",
    "cmr ask --document book.txt.gz --question Who?",
    "cmr ask --document damaged.pdf --question Who?",
    # Models
    "cmr ask --document book.txt --question Who? --model ./tyni",
    "cmr ask --document book.txt --question Who? --model tiny/config.json",
    "cmr ask --document book.txt --question Who? --model none.gguf",
    "cmr ask --document book.txt --question Who? --model damaged.gguf",
    # Saved memories
    "cmr ask --load nothing --question Who?",
    "cmr ask --load mem --session nobody --question Who? --model tiny",
    "cmr ask --load mem --key-file key.txt --question Who?",
    "cmr ask --document book.txt --question Who? --key-file key.txt",
    "cmr ask --document book.txt --save mem --model tiny",
    "cmr ask --document book.txt --save chapters",
    "cmr ask --document book.txt --save book.txt",
    "cmr memory inspect",
    "cmr memory inspect nothing",
    "cmr memory inspect mem --tier top",
    "cmr memory inspect mem --order size",
    "cmr memory forget mem",
    "cmr memory forget mem --older-than soon",
    "cmr memory export mem --out mem.csv",
    # Servers
    "cmr ask --url 127.0.0.1:8000 --document book.txt --question Who?",
    "cmr ask --url http://127.0.0.1:9 --document book.txt --question Who?",
    "cmr ask --url http://127.0.0.1:9 --question Who?",
    "cmr ask --url http://127.0.0.1:9 --document book.txt --question Who? --window 64",
    "cmr serve --host 0.0.0.0",
    "cmr serve --keys nothing",
    "cmr serve --folder chapters",
    "cmr serve-key --keys keys --tenant acme --scope root",
    # Calibration
    "cmr calibrate --text bok.txt",
    "cmr calibrate --out chapters",
)

CALLS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ('cmr.attach("gpt2")', lambda m: cmr.attach("gpt2")),
    ("cmr.attach(model.model)", lambda m: cmr.attach(m.model)),
    ("cmr.attach(model, 64)", lambda m: cmr.attach(m, 64)),
    ("cmr.attach(model, windw=64)", lambda m: cmr.attach(m, windw=64)),
    ("cmr.attach(model, unknown=1)", lambda m: cmr.attach(m, unknown=1)),
    ("cmr.attach(model, window=8)", lambda m: cmr.attach(m, window=8)),
    ("cmr.attach(model, window=4096)", lambda m: cmr.attach(m, window=4096)),
    ('cmr.attach(model, window="64")', lambda m: cmr.attach(m, window="64")),
    ("cmr.attach(model, budget=0)", lambda m: cmr.attach(m, budget=0)),
    ('cmr.attach(model, budget="2 gallons")', lambda m: cmr.attach(m, budget="2 gallons")),
    ('cmr.attach(model, budget="1 KB")', lambda m: cmr.attach(m, budget="1 KB")),
    ("cmr.attach(model, memory_weight=2)", lambda m: cmr.attach(m, memory_weight=2)),
    ('cmr.attach(model, strategy="bm25")', lambda m: cmr.attach(m, strategy="bm25")),
    (
        'cmr.attach(model, strategy="multi_critera")',
        lambda m: cmr.attach(m, strategy="multi_critera"),
    ),
    ("cmr.attach(model, target_layers=[99])", lambda m: cmr.attach(m, target_layers=[99])),
    ('cmr.attach(model, device="cuda:7")', lambda m: cmr.attach(m, device="cuda:7")),
    ('cmr.load("nothing", model)', lambda m: cmr.load("nothing", m)),
    ("cmr.attach(model), twice", lambda m: (cmr.attach(m), cmr.attach(m))),
    ("memory.session()", lambda m: cmr.attach(m).session()),
    ("memory.forget()", lambda m: cmr.attach(m).forget()),
    ('memory.forget("nobody")', lambda m: cmr.attach(m).forget("nobody")),
    ('memory.rename("0", "1")', lambda m: cmr.attach(m).rename("0", "1")),
    (
        "memory.read(ids), after memory.detach()",
        lambda m: _detached(m).read(torch.ones(1, 8, dtype=torch.long)),
    ),
    ("memory.read(ids of another tokenizer)", lambda m: cmr.attach(m).read(torch.tensor([[9999]]))),
)
"""What is written, and what is done with a tiny decoder."""


def _detached(model: Any) -> cmr.Memory:
    memory = cmr.attach(model)
    memory.detach()
    return memory


def prepare(folder: Path) -> None:
    """The files that the commands name."""
    build(folder / "tiny")
    (folder / "chapters").mkdir()
    (folder / "chapters" / "one.txt").write_text("One.")
    (folder / "book.txt").write_text("The secret of Ada is lavender in the north tower. " * 8)
    (folder / "empty.txt").write_text(" \n")
    (folder / "old.txt").write_bytes("für Ada".encode("latin-1"))
    (folder / "program").write_bytes(b"\x7fELF\0\0")
    (folder / "letter.docx").write_bytes(b"PK\x03\x04 and more")
    (folder / "book.txt.gz").write_bytes(b"\x1f\x8b and more")
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7\nnothing")
    (folder / "damaged.gguf").write_bytes(b"nothing")
    (folder / "key.txt").write_text("a passphrase\n")
    code, said = run("cmr ask --document book.txt --save mem --model tiny --window 64")
    assert code == 0, said


def run(command: str) -> tuple[int, str]:
    """Exit code and standard error of a command, in the present folder, with nothing typed."""
    out, err = io.StringIO(), io.StringIO()
    typed = io.TextIOWrapper(io.BytesIO())
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", typed),
    ):
        try:
            main(shlex.split(command)[1:])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, err.getvalue()


def fail(call: Callable[[Any], Any], model: Any) -> str:
    """What a call raises, by its type and message."""
    try:
        call(model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(cmr.AttachError):
            memory_of(model).detach()
    raise AssertionError("nothing was raised")


def found() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """All commands and all calls, each with what is printed."""
    before = Path.cwd()
    environment = {"CMR_CACHE": "", "CMR_MEMORY_KEY": "", "CMR_SERVER_KEY": ""}
    folder = Path(tempfile.mkdtemp()).resolve()
    environment["CMR_CACHE"] = str(folder / "cache")
    try:
        os.chdir(folder)
        with mock.patch.dict(os.environ, environment):
            prepare(folder)
            commands = []
            for command in COMMANDS:
                code, said = run(command)
                assert code == 2, f"{command}: {code}: {said}"
                commands.append((command, said.strip().replace(str(folder), FOLDER)))
            model = transformers.AutoModelForCausalLM.from_pretrained("tiny").eval()
            calls = [(shown, fail(call, model)) for shown, call in CALLS]
    finally:
        os.chdir(before)
        shutil.rmtree(folder)
    return commands, calls


def page() -> str:
    """The page, as it should be."""
    commands, calls = found()
    lines = [
        "# What is said where something is wrong",
        "",
        "Mistakes that people make, and what they read. A mistake is told in one line, before any",
        "work and with nothing changed; commands exit with code 2. This page is written by",
        "`python -m tests.docs.misuses`, which makes each of them.",
        "",
        "## On the command line",
        "",
        "Each line on standard error begins with `error: `.",
        "",
        *_table(commands, lambda said: said.removeprefix("error: ")),
        "",
        "## In a program",
        "",
        "`model` is a decoder of three layers for 2,048 tokens.",
        "",
        *_table(calls, str),
    ]
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, str]], shown: Callable[[str], str]) -> list[str]:
    lines = ["| what is done | what is said |", "|---|---|"]
    return lines + [f"| `{done}` | {_cell(shown(said))} |" for done, said in rows]


def _cell(text: str) -> str:
    """Plain text inside of a table: its own signs of Markdown are shown as they are."""
    plain = SimpleNamespace(outside=True)

    def letter(sign: str) -> str:
        if sign == "`":
            plain.outside = not plain.outside
        if sign == "|":
            return "\\|"
        return f"\\{sign}" if plain.outside and sign in "*_<>[]" else sign

    return "".join(map(letter, text))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
