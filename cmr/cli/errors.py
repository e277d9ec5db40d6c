"""Errors that a user can mend: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import typer

from cmr.errors import CMRError

P = ParamSpec("P")
R = TypeVar("R")


class UsageError(CMRError):
    """The command line asks for something that cannot be done; the message says what to do."""


# What the option parser raises for wrong words; typer has it under no public name of its own.
WrongUse: type[Exception] = typer.BadParameter.__mro__[1]


# The parser's words for a value, with what it says a second time behind the comma.
_INVALID = re.compile(r"Invalid value for '([^']+)': Input should be ([^,]+)(, unable .*)?")


def told(error: Any) -> str:
    """A `WrongUse` on one line; '' where its help was shown in place of it."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    said = " ".join(str(error.format_message()).split()).rstrip(".")
    said = _INVALID.sub(r"\1 should be \2", said)
    command = "cmr" if error.ctx is None else error.ctx.command_path
    return f"{said}{'' if said.endswith('?') else ';'} `{command} --help` tells more"


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Turn what the system says against a file into an error that names the option it is of."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{option}: {error.strerror or error}") from None


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our own errors into one line on stderr and exit code 2, Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except CMRError as error:
            print(f"error: {error}", file=sys.stderr)
            # As the option parser exits for a wrong option.
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            # As a shell reports Ctrl-C: 128 and the signal's number.
            raise typer.Exit(130) from None

    return wrapper
