"""The words of the format: strict JSON, forms of tensors, and what a memory gives to be saved.

What was written is what is read; anything else is an error that names the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import torch

from cmr.errors import CorruptMemoryError

T = TypeVar("T")

# The names that the safetensors format gives to data types.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}")
MAX_DIMS, MAX_BYTES = 8, 1 << 62
MAX_DEPTH = 100
# Fastest of what hashlib has and is trusted, on processors with instructions for it.
HASH = "sha256"


class Part(NamedTuple):
    """One tensor of a block: its data type and the shape that it has for one block."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of one block's tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Kind(NamedTuple):
    """A form in which blocks are stored: the names of its parts and what each of them is."""

    name: str
    parts: Mapping[str, Part]

    @property
    def nbytes(self) -> int:
        """Bytes of one block in this form."""
        return sum(part.nbytes for part in self.parts.values())


class Content(Protocol):
    """What a memory gives to be saved: `n` blocks, in an order of its own.

    Attributes:
        header: plain JSON.
        kinds: the forms of blocks.
        kind: `[n]` int64, index into `kinds` of each block.
        numbers: `[n]` int64, the block's number: at least 0 and unique. The rows of a block never
            change under the same number and kind.
        session: `[n]` int64, the number of the session that owns the block.
        columns: name to `[n, ...]`: small tensors that may change and are written at every save.
    """

    # Properties, not attributes: they are only read, so a list is a sequence here.
    @property
    def header(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def kinds(self) -> Sequence[Kind]: ...  # noqa: D102
    @property
    def kind(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def numbers(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def session(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def columns(self) -> Mapping[str, torch.Tensor]: ...  # noqa: D102

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        """One part of the blocks of a kind at positions `at` (0 to n - 1): `[k, *shape]`, CPU."""
        ...


def check_content(content: Content) -> None:
    """Raises ValueError or TypeError for content that cannot be saved, before anything is."""
    names = [kind.name for kind in content.kinds]
    if len(set(names)) != len(names):
        raise ValueError(f"kinds with different names expected, got {names}")
    for kind in content.kinds:
        _check_name("kind", kind.name)
        for name, part in kind.parts.items():
            _check_name("part", name)
            _check_dtype(f"part {name!r} of kind {kind.name!r}", part.dtype)
            if part.dtype == torch.bool:
                raise ValueError(f"part {name!r}: booleans are stored as uint8, got torch.bool")
            if len(part.shape) > MAX_DIMS:
                raise ValueError(f"part {name!r}: at most {MAX_DIMS} dimensions, got {part.shape}")
    count = len(content.numbers)
    for name in ("numbers", "kind", "session"):
        column = getattr(content, name)
        if column.dtype != torch.int64 or column.shape != (count,):
            raise ValueError(
                f"{name}: [{count}] int64 expected, got {list(column.shape)} {column.dtype}"
            )
    if count and int(content.numbers.min()) < 0:
        raise ValueError(
            f"numbers of blocks start at 0, got {int(content.numbers.min())} among them"
        )
    if len(content.numbers.unique()) != count:
        raise ValueError(f"{count} different block numbers expected, got some twice")
    if count and not 0 <= int(content.kind.min()) <= int(content.kind.max()) < len(names):
        raise ValueError(f"kinds 0..{len(names) - 1} expected, got others among them")
    for name, column in content.columns.items():
        _check_name("column", name)
        _check_dtype(f"column {name!r}", column.dtype)
        if column.ndim < 1 or len(column) != count or column.ndim > MAX_DIMS:
            raise ValueError(f"column {name!r}: [{count}, ...] expected, got {list(column.shape)}")
    check_plain(content.header)
    if not isinstance(content.header, dict):
        raise TypeError(f"a header is a dict, got {type(content.header).__name__}")


def check_plain(value: Any, depth: int = 0) -> None:
    """Raises unless JSON gives `value` back as it is (tuples excepted: they become lists)."""
    if depth > MAX_DEPTH:
        raise ValueError(f"at most {MAX_DEPTH} levels of nesting in a header")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"keys of a header are strings, got {type(key).__name__}")
            check_plain(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_plain(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"finite numbers expected in a header, got {value}")
    elif value is not None and type(value) not in (str, int, bool):
        raise TypeError(f"plain JSON expected in a header, got {type(value).__name__}")


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"the name of a {what} is letters, digits, '_', '.', '-', got {name!r}")


def _check_dtype(what: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPE_NAMES:
        known = ", ".join(str(known).removeprefix("torch.") for known in DTYPE_NAMES)
        raise ValueError(f"{what}: one of {known} expected, got {dtype}")


# -- strict JSON ---------------------------------------------------------------------------------


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
            raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_float=real
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
        corrupt(where, f"an object with {key!r} expected, got {type(table).__name__}")
    if key not in table:
        corrupt(where, f"{key!r} is missing")
    value = table[key]
    if not isinstance(value, type_) or (isinstance(value, bool) and type_ is not bool):
        corrupt(where, f"{key!r}: {type_.__name__} expected, got {type(value).__name__}")
    return value


def take_size(table: Any, key: str, limit: int, where: object) -> int:
    """`table[key]`, if it is an integer in 0..limit."""
    value = take(table, key, int, where)
    if not 0 <= value <= limit:
        corrupt(where, f"{key!r}: an integer in 0..{limit} expected, got {str(value)[:40]}")
    return value
