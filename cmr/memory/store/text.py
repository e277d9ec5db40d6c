"""Strict JSON: what was written is what is read, and anything else is an error naming the file."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, TypeVar

from cmr.errors import CorruptMemoryError

T = TypeVar("T")


def corrupt(where: object, found: str) -> NoReturn:
    """Raises CorruptMemoryError: `where` names the file, `found` says what is wrong with it."""
    raise CorruptMemoryError(f"{where}: {found}")


def dump(value: Any) -> bytes:
    """Compact JSON in ASCII, keys in their order; refuses NaN and infinities."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def parse(raw: bytes, where: object) -> Any:
    """The value of JSON text in UTF-8: no NaN, no infinities, no key twice, no endless nesting."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(items)
        if len(table) != len(items):
            corrupt(where, "a key stands twice in an object")
        return table

    def constant(name: str) -> NoReturn:
        corrupt(where, f"finite numbers expected, got {name}")

    def real(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else constant(digits[:40])

    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=real,
        )
    except UnicodeDecodeError as error:
        corrupt(where, f"UTF-8 text expected, got byte {raw[error.start]:#04x} at {error.start}")
    except RecursionError:
        corrupt(where, "JSON nested too deeply")
    except CorruptMemoryError:
        raise
    except ValueError as error:  # its message may quote nothing but positions
        corrupt(where, f"JSON expected ({error})")


def take(table: Any, key: str, type_: type[T], where: object) -> T:
    """`table[key]`, if `table` is an object that has it and it is a `type_` (a bool is no int)."""
    if not isinstance(table, dict):
        corrupt(where, f"an object with {key!r} expected, got {_named(table)}")
    if key not in table:
        corrupt(where, f"{key!r} is missing")
    value = table[key]
    if not isinstance(value, type_) or (isinstance(value, bool) and type_ is not bool):
        corrupt(where, f"{key!r}: {type_.__name__} expected, got {_named(value)}")
    return value


def take_size(table: Any, key: str, limit: int, where: object) -> int:
    """`table[key]`, if it is an integer in 0..limit."""
    value = take(table, key, int, where)
    if not 0 <= value <= limit:
        corrupt(where, f"{key!r}: an integer in 0..{limit} expected, got {str(value)[:40]}")
    return value


def _named(value: Any) -> str:
    return type(value).__name__
