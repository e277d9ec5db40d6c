"""The page of the command line, made of the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from cmr.cli.app import app

PAGE, MARK = "command-line.md", "<!-- commands -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page of the command line with all commands in the place of its mark."""
    if page.file.src_uri != PAGE:
        return markdown
    before, mark, behind = markdown.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE}: a line {MARK} expected, where the commands go")
    return before + "\n".join(lines(typer.main.get_command(app), "cmr")) + behind


def lines(command: Any, name: str) -> Iterator[str]:
    """A command and those inside of it as Markdown, a heading and a table each."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield f"## {name}\n\n{_sentence(command.help)}\n"
        yield from _table(command)
    for word, each in sorted(inner.items()):
        yield from lines(each, f"{name} {word}")


def _table(command: Any) -> Iterator[str]:
    shown = [option for option in command.params if not getattr(option, "hidden", False)]
    if shown:
        yield "| option | default | meaning |\n|---|---|---|"
    for option in shown:
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        if option.param_type_name == "argument":
            names = f"`{option.name.upper()}`"
        yield f"| {names} | {_default(option)} | {_sentence(getattr(option, 'help', None))} |"
    yield ""


def _default(option: Any) -> str:
    if option.required:
        return "must be given"
    return "" if option.default in (None, [], ()) else f"`{option.default}`"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
