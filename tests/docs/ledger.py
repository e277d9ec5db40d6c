"""What a ledger of figures is written with: rows, figures, and the words around them.

A ledger (`figures/<page>.py`) says of each measured figure of a page which row it is of. It yields
sentences, or rows of tables, as they stand in the page, with the figures taken out of rows:

    saved = newest("save_speed.jsonl")
    yield (
        f"were saved in {saved.save.s:.2f} s, {saved.save_share_of_disk:.2f} of what plain writing"
    )

`compare` finds these words in the page, wherever its lines break, and says which figure is another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.docs.blocks import ROOT

RESULTS = ROOT / "benchmarks" / "results"
OPEN, CLOSE = "\ue000", "\ue001"
"""Around a figure in what a ledger yields; no page has these characters."""
MARKED = re.compile(f"{OPEN}([^{CLOSE}]*){CLOSE}")
NUMBER = r"[-−+]?\d+(?:,\d{3})*(?:\.\d+)?"
"""How a figure is written in a page."""
WORDS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip


class Figure(float):
    """A measured number. It is formatted as numbers are, and marked, so that its place is known.

    Without a format a whole number is written whole. `%` is the number of hundredths without the
    sign: `{0.642:.1%}` is 64.2, by default without decimals.
    """

    def __format__(self, form: str) -> str:
        value, whole = float(self), self.is_integer()
        if form.endswith("%"):
            form, value = form[:-1] + ("f" if "." in form else ".0f"), 100 * value
        elif form in ("", ",") and whole:
            form += "d"
        text = format(int(value) if form.endswith("d") else value, form)
        if re.fullmatch(r"[-+]0(\.0*)?", text):
            text = text[1:]  # no figure is a negative nothing
        return f"{OPEN}{text}{CLOSE}"

    def __neg__(self) -> Figure:
        return Figure(-float(self))

    def __abs__(self) -> Figure:
        return Figure(abs(float(self)))

    def __truediv__(self, other: float) -> Figure:
        return Figure(float(self) / float(other))

    def __sub__(self, other: float) -> Figure:
        return Figure(float(self) - float(other))


def of_json(value: Any) -> Any:
    """What stands in a row, with its numbers as figures."""
    if isinstance(value, dict):
        return Row({name: of_json(inner) for name, inner in value.items()})
    if isinstance(value, list):
        return [of_json(inner) for inner in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Figure(value)
    return value


class Row(dict[str, Any]):
    """A row of `benchmarks/results/`; `row.save.s` is `row["save"]["s"]`."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"no field {name} among {sorted(self)}")
        return self[name]


@cache
def all_rows(name: str) -> tuple[Row, ...]:
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    return tuple(of_json(json.loads(line)) for line in lines)


def rows(name: str, where: Callable[[Row], bool] | None = None, **which: Any) -> list[Row]:
    """The rows of a file whose fields are as said, from the oldest to the newest.

    Args:
        name: the file in `benchmarks/results/`.
        where: what else they must be like.
        which: fields; a string may have a `*` at which anything stands.
    """

    def fits(row: Row) -> bool:
        for field_name, wanted in which.items():
            has = row.get(field_name)
            if isinstance(wanted, str) and isinstance(has, str):
                if not fnmatchcase(has, wanted):
                    return False
            elif has != wanted:
                return False
        return where is None or where(row)

    found = sorted(
        (row for row in all_rows(name) if fits(row)), key=lambda row: row.get("date", "")
    )
    if not found:
        raise LookupError(f"{name} has no row with {which}")
    return found


def newest(name: str, where: Callable[[Row], bool] | None = None, **which: Any) -> Row:
    """The newest of the rows whose fields are as said."""
    return rows(name, where, **which)[-1]


def between(ends: list[Figure], form: str = "%") -> str:
    """An interval, in brackets."""
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]"


def in_words(number: float) -> str:
    """A small number as a word."""
    return f"{OPEN}{WORDS[int(number)]}{CLOSE}"


def told(true: bool, what: str) -> None:
    """Holds what a page tells of rows without a number."""
    if not true:
        raise AssertionError(f"the page tells what its rows do not tell any more: {what}")


@dataclass
class Compared:
    """What a page has of a ledger's words.

    Attributes:
        held: from where to where figures stand that are those of rows.
        wrong: where another figure stands, and what the row says.
        missing: the words are nowhere.
    """

    held: list[tuple[int, int]] = field(default_factory=list)
    wrong: list[tuple[int, int, str]] = field(default_factory=list)
    missing: bool = False


def compare(text: str, words: str) -> Compared:
    """Looks for a ledger's words in a page, with any figures in the places of theirs."""
    parts = MARKED.split(words)
    pattern = ""
    for number, part in enumerate(parts):
        if number % 2 == 0:
            pattern += re.sub(r"(?:\\?\s)+", r"\\s+", re.escape(part))
        else:
            pattern += f"({NUMBER})" if re.search(r"\d", part) else r"([A-Za-z]+)"
    out = Compared()
    for match in re.finditer(pattern, text):
        for group, figure in enumerate(parts[1::2], start=1):
            begin, end = match.span(group)
            if match[group].replace("−", "-").lower() == figure:
                out.held.append((begin, end))
            else:
                out.wrong.append((begin, end, figure))
    out.missing = not (out.held or out.wrong)
    return out


def text_of(document: str) -> str:
    """A page, or what a picture says; nothing in it is moved."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if document.endswith(".svg"):
        text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"[^\n]", " ", tag[0]), text)
    return text


def ledgers() -> dict[str, ModuleType]:
    """The ledgers in `figures/`, by the page that each is of."""
    names = sorted(path.stem for path in (Path(__file__).parent / "figures").glob("[a-z]*.py"))
    modules = [import_module(f"tests.docs.figures.{name}") for name in names]
    return {module.DOCUMENT: module for module in modules}


def plain(words: str) -> str:
    """A ledger's words as they should stand in the page."""
    return MARKED.sub(r"\1", words)


def line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def differences(document: str, text: str, ledger: Iterator[str]) -> list[str]:
    """What a page says otherwise than the rows, a line each."""
    out = []
    for words in ledger:
        compared = compare(text, words)
        if compared.missing:
            out.append(f"{document}: these words are not in it: {' '.join(plain(words).split())}")
        for begin, end, figure in compared.wrong:
            around = " ".join(text[max(0, begin - 40) : end + 40].split())
            line = line_of(text, begin)
            out.append(
                f"{document}:{line}: {text[begin:end]} stands there, {figure} in the row: … "
                f"{around} …"
            )
    return out
