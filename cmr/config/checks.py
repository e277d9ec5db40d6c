"""Checks of single configuration values. Each names field, value and what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterable
from typing import Any

from cmr.errors import ConfigError

MOST_NAMES = 12
"""So many names are read in an error; where there are more, it says what lists them."""


def refuse(field: str, value: object, expected: str) -> ConfigError:
    """The error for `value` in `field`, ready to be raised."""
    return ConfigError(f"{field}: {expected} expected, got {value!r}")


def put(instance: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass while it is made."""
    object.__setattr__(instance, name, value)


def setting(default: Any, check: Callable[..., Any], *arguments: Any) -> Any:
    """A field of a `Checked` dataclass, whose value is `check(name, value, *arguments)`."""
    return dataclasses.field(default=default, metadata={"check": check, "arguments": arguments})


class Checked:
    """What settings have in common: each `setting` is checked when they are made.

    A field whose default is None may be None; no other may.
    """

    def __post_init__(self) -> None:
        """Checks every field; what belongs to two of them is checked by who has them."""
        kind: Any = type(self)
        for name, may_be_none, check, arguments in _checks_of(kind):
            value = getattr(self, name)
            if value is None and may_be_none:
                continue
            checked = check(name, value, *arguments)
            if checked is not value:
                put(self, name, checked)


@functools.cache
def _checks_of(kind: Any) -> list[tuple[str, bool, Callable[..., Any], tuple[Any, ...]]]:
    """Name, whether it may be None, check and its arguments of each setting of a dataclass."""
    # Looked up once a class: requests with settings of their own make these anew.
    return [
        (item.name, item.default is None, item.metadata["check"], item.metadata["arguments"])
        for item in dataclasses.fields(kind)
        if item.metadata
    ]


def near(name: object, known: Iterable[str]) -> str | None:
    """The known name that somebody may have meant; None where none is near."""
    name = str(name)
    for close in difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6):
        # Names that begin alike may differ more: 'coding' means 'code', 'unknown' means not 'knn'.
        alike = difflib.SequenceMatcher(None, name, close).ratio() >= 0.75
        if alike or name[:1].casefold() == close[:1].casefold():
            return close
    return None


def nearest(name: object, known: Iterable[str], where: str = "") -> str:
    """'did you mean ...?' for the name that is near; else what there is.

    Args:
        name: what was given.
        known: all names.
        where: what lists them, said where there are too many to be read here.
    """
    known = sorted(known)
    close = near(name, known)
    if close is not None:
        return f"did you mean {close!r}?"
    if where and len(known) > MOST_NAMES:
        return where
    return f"known: {', '.join(known) or 'none'}"


def integer(field: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as int, if it is an integer (not a bool) in [low, high]."""
    # `index` takes numpy's integers, too, and no float; a bool is an int that nobody means as one.
    expected = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise refuse(field, value, expected) from None
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise refuse(field, value, expected)
    return number


def real(field: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` as float, if it is a finite real number (not a bool) in [low, high]."""
    if high == math.inf:
        expected = "a finite number" if low == -math.inf else f"a number of at least {low:g}"
    else:
        expected = f"a number in [{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refuse(field, value, expected)
    number = float(value)
    # Every comparison with NaN is false, so a range alone would not refuse it.
    if not math.isfinite(number) or not low <= number <= high:
        raise refuse(field, value, expected)
    return number


def auto_or_real(field: str, value: Any, low: float, high: float) -> float | str:
    """`value`, if it is 'auto', or a real number in [low, high] as float."""
    if not isinstance(value, str):
        return real(field, value, low, high)
    if value != "auto":
        raise refuse(field, value, f"'auto' or a number in [{low:g}, {high:g}]")
    return value


def share(field: str, value: Any) -> float:
    """`value` as float, if it is in (0, 1]."""
    number = real(field, value, 0.0, 1.0)
    if number == 0:
        raise refuse(field, value, "a number in (0, 1]")
    return number


def positive(field: str, value: Any, what: str = "a number") -> float:
    """`value` as float, if it is above 0; `what` it is, for the error."""
    number = real(field, value, 0.0)
    if number == 0:
        raise refuse(field, value, f"{what} above 0")
    return number


def text(field: str, value: Any, expected: str) -> str:
    """`value`, if it is a string."""
    if not isinstance(value, str):
        raise refuse(field, value, expected)
    return value


def flag(field: str, value: Any) -> bool:
    """`value`, if it is a bool."""
    if not isinstance(value, bool):
        raise refuse(field, value, "True or False")
    return value


def choice(field: str, value: Any, allowed: Iterable[str]) -> str:
    """`value`, if it is one of `allowed`; the error names all, and the one that is near."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        close = near(value, allowed) if isinstance(value, str) else None
        hint = "" if close is None else f"; did you mean {close!r}?"
        error = refuse(field, value, "one of " + ", ".join(map(repr, allowed)))
        raise ConfigError(f"{error}{hint}")
    return value


def layers(field: str, value: Any) -> tuple[int, ...]:
    """`value` as a sorted tuple of distinct layer numbers, none negative, at least one."""
    expected = "a non-empty sequence of distinct layer numbers from 0 on"
    # A string is a sequence as well, and '12' is not layers 1 and 2.
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise refuse(field, value, expected)
    items = list(value)
    try:
        numbers_ = [operator.index(item) for item in items]
    except TypeError:
        raise refuse(field, value, expected) from None
    wrong = any(isinstance(item, bool) for item in items) or any(n < 0 for n in numbers_)
    if wrong or not numbers_ or len(set(numbers_)) != len(numbers_):
        raise refuse(field, value, expected)
    return tuple(sorted(numbers_))


def weights(field: str, value: Any, criteria: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """`value` (a mapping, or its items) as items: known names, weights >= 0, not all of them 0."""
    criteria = tuple(criteria)
    expected = f"a dict of weights of at least 0, one above 0, for {', '.join(criteria)}"
    # Items, as those of a dictionary: what a frozen dataclass keeps can be hashed.
    try:
        given = dict(value)
    except (TypeError, ValueError):
        raise refuse(field, value, expected) from None
    for name, weight in given.items():
        choice(f"{field} key", name, criteria)
        real(f"{field}[{name!r}]", weight, 0.0)
    if sum(given.values(), 0.0) <= 0:
        raise refuse(field, value, expected)
    return tuple((name, float(weight)) for name, weight in given.items())
