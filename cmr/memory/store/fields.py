"""What checks of parsed JSON are made of: numbers, texts, lists, tables.

A check is a function that takes a value and raises `Wrong` for one that cannot be.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cmr.memory.store.form import corrupt

Check = Callable[[Any], None]


class Wrong(ValueError):
    """What is wrong with a value; the tables and lists that it is in say where it is."""

    path = ""

    def under(self, key: object) -> Wrong:
        """The same, of a value in a list or table."""
        self.path = f".{str(key)[:80]}{self.path}"
        return self

    def __str__(self) -> str:
        says = super().__str__()
        between = " " if says.startswith("is ") else ": "
        return f"{self.path[1:]!r}{between}{says}" if self.path else says


def wrong(expected: str, value: object) -> Wrong:
    """The error for a value, ready to be raised."""
    if isinstance(value, str):
        shown = repr(value[:40])
    elif isinstance(value, (bool, int, float)):
        shown = str(value)[:40]
    else:
        size = f" of {len(value)}" if isinstance(value, (list, dict)) else ""
        shown = "nothing" if value is None else f"{type(value).__name__}{size}"
    return Wrong(f"{expected} expected, got {shown}")


def anything(value: Any) -> None:
    """Takes any value."""


def whole(low: int = 0, high: int = 1 << 62) -> Check:
    """An integer (no bool) in low..high."""

    def check(value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise wrong(f"an integer in {low}..{high}", value)

    return check


def real(low: float, high: float) -> Check:
    """A number (no bool) above `low`, at most `high`."""

    def check(value: Any) -> None:
        if type(value) not in (int, float) or not low < value <= high:
            raise wrong(f"a number above {low:g} and at most {high:g}", value)

    return check


def text(expected: str, pattern: re.Pattern[str]) -> Check:
    """A string that fits a pattern."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise wrong(expected, value)

    return check


def one_of(*allowed: object) -> Check:
    """One of some strings or bools."""

    def check(value: Any) -> None:
        if not isinstance(value, (str, bool)) or value not in allowed:
            raise wrong(f"one of {', '.join(map(repr, allowed))}", value)

    return check


def maybe(check: Check) -> Check:
    """Nothing, or what another check takes."""

    def check_it(value: Any) -> None:
        if value is not None:
            check(value)

    return check_it


def items(check: Check, most: int) -> Check:
    """A list of at most `most` of what another check takes."""

    def check_all(value: Any) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise wrong(f"a list of at most {most}", value)
        for at, item in enumerate(value):
            try:
                check(item)
            except Wrong as error:
                raise error.under(at) from None

    return check_all


def wholes(low: int, high: int, most: int) -> Check:
    """The same of many integers: no call for each of them."""

    def check(value: Any) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise wrong(f"a list of at most {most}", value)
        if value and (set(map(type, value)) != {int} or min(value) < low or max(value) > high):
            bad = next(x for x in value if type(x) is not int or not low <= x <= high)
            raise wrong(f"integers in {low}..{high}", bad)

    return check


def table(**fields: Check) -> Check:
    """An object with these fields and no other."""

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise wrong(f"an object with {', '.join(map(repr, fields))}", value)
        for name, field in fields.items():
            try:
                if name not in value:
                    raise Wrong("is missing")
                field(value[name])
            except Wrong as error:
                raise error.under(name) from None
        for name in value:
            if name not in fields:
                raise Wrong("is no field that is known here").under(name)

    return check


def named(name: Check, check: Check, most: int) -> Check:
    """An object of at most `most` fields whose names and values two checks take."""

    def check_all(value: Any) -> None:
        if not isinstance(value, dict) or len(value) > most:
            raise wrong(f"an object of at most {most} fields", value)
        for key, item in value.items():
            try:
                name(key)
                check(item)
            except Wrong as error:
                raise error.under(key) from None

    return check_all


def hold(check: Check, value: Any, where: object, under: str = "") -> None:
    """Raises CorruptMemoryError, which names the file `where`, unless a check takes a value."""
    try:
        check(value)
    except Wrong as error:
        corrupt(where, str(error.under(under) if under else error))
