"""The command lines of the benchmarks: common options, where rows go, and what is said of errors.

A module that can be run ends in `command.run(main)`, and its `main` parses with `Parser`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.shared import rows
from cmr.evaluation.settings import overrides

EXTRAS = 'pip install -e ".[demo,bench]"'


class UsageError(Exception):
    """What the caller got wrong, in one line: `run` prints it and exits with code 2."""


class Parser(argparse.ArgumentParser):
    """The command line of a benchmark.

    Args:
        about: the module's docstring.
        appends: whether the benchmark appends rows; adds `--record` and `--results`.
    """

    def __init__(self, about: str | None, appends: bool = True) -> None:
        super().__init__(
            prog=f"python -m {rows.module()}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._drawn = ""
        if appends:
            place = self.add_mutually_exclusive_group()
            place.add_argument(
                "--record",
                action="store_true",
                help="append rows to benchmarks/results/, which is committed",
            )
            place.add_argument(
                "--results",
                type=folder,
                metavar="FOLDER",
                help="append rows to FOLDER (default: benchmarks/own/, which git ignores)",
            )

    def add_threads(self, default: int | None = None) -> None:
        """Adds `--threads`; `parse_args` sets them."""
        self.add_argument("--threads", type=whole(), default=default, help="threads of PyTorch")

    def add_seed(self, default: int = 0) -> None:
        """Adds `--seed`."""
        self.add_argument("--seed", type=int, default=default)

    def add_model(self) -> None:
        """Adds `--model`; see `model.load_model`."""
        self.add_argument(
            "--model",
            default=os.environ.get("CMR_MODEL", "smollm2"),
            help="smollm2, qwen (after python -m benchmarks.models), or a folder with a model "
            "(default: $CMR_MODEL, else smollm2)",
        )

    def add_settings(self, *default: str) -> None:
        """Adds `--set`; `parse_args` checks them and gives them as `settings`, too."""
        self.add_argument(
            "--set",
            nargs="+",
            metavar="NAME=VALUE",
            default=list(default),
            help="settings for attach",
        )

    def add_drawing(self, name: str) -> None:
        """Adds `--results` and `--out` of what draws rows; by default it draws the committed ones.

        Args:
            name: of the picture.
        """
        self.add_argument(
            "--results",
            dest="rows",
            type=folder,
            metavar="FOLDER",
            help="draw the rows of FOLDER, and there (default: benchmarks/results/)",
        )
        self.add_argument("--out", type=Path, metavar="FILE", help=f"the picture ({name})")
        self._drawn = name

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parses and acts on the common options; leaves the program where a word is wrong."""
        found = super().parse_args(args, namespace)
        given = vars(found)
        if given.pop("record", False):
            rows.into = rows.RESULTS
        elif (elsewhere := given.pop("results", None)) is not None:
            rows.into = elsewhere
        if self._drawn and found.out is None:
            found.out = (found.rows or rows.RESULTS) / self._drawn
        if given.get("set") is not None:
            try:
                found.settings = overrides(found.set)
            except ValueError as error:  # what a setting may be is the library's to say
                self.error(f"argument --set: {error}")
        if given.get("threads"):
            import torch

            torch.set_num_threads(found.threads)
        return found


def whole(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """A type for an argument: a whole number in [least, most]."""

    def number(word: str) -> int:
        if word.isdecimal() and least <= int(word) and (most is None or int(word) <= most):
            return int(word)
        bound = "" if most is None else f" and at most {most:,}"
        raise argparse.ArgumentTypeError(
            f"a whole number of at least {least:,}{bound} expected, got {word!r}"
        )

    return number


def folder(word: str) -> Path:
    """A type for an argument: a folder that is there or can be made."""
    path = Path(word)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"a folder expected, got the file {word!r}")
    return path


def run(main: Callable[[], Any]) -> None:
    """Runs a benchmark and says where its rows are.

    Something that the caller got wrong, a file that is missing or a package that is not installed
    is said in one line, with exit code 2. A number that `main` returns is the exit code.
    """
    try:
        code = main()
    except (UsageError, FileNotFoundError) as error:
        _leave(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("benchmarks", "cmr"):
            raise
        _leave(f"{error.name} is not installed: {EXTRAS}")
    for path in rows.written:
        print(f"rows: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    if isinstance(code, int):
        raise SystemExit(code)


def _leave(why: str) -> None:
    print(f"python -m {rows.module()}: error: {why}", file=sys.stderr)
    raise SystemExit(2)
