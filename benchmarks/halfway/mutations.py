"""Ways in which the files of a saved memory can be wrong, with right checksums or without."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Files = dict[str, bytes]
MANIFEST = "manifest.json"
DEEP, LONG = 90, 100_000
DEEPEST = "@deepest@"
"""Stands for lists in lists, deeper than Python can write them."""


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 10**4, 10**7, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**70,
    -(2**63), 10**30, 0.0, -0.0, 0.5, 1.5, 5e-324, 1e-300, 1e12, 1e308, -1e308, float("nan"),
    float("inf"), float("-inf"), "", "0", "x", "auto", "none", "anna", "../../etc/passwd",
    "/etc/passwd", "/dev/zero", "/proc/self/mem", "9999999999GB", "9" * 400 + "GB", "\x00",
    "\x1b[2J\x1b]0;x\x07", "\ud800", "\u202e", "é" * 2000, "a" * LONG, [], [None], [0], [1, 2],
    ["x"] * 3, [[]], [-1] * 9, {}, {"x": 1}, {"../x": "/etc/passwd"}, nested(DEEP), DEEPEST,
    list(range(2000)),
)  # fmt: skip
"""What a field gets in place of its own value."""
NUMBERS = (0, 1, -1, 7, 2**31, 2**53, 2**62, 2**63 - 1, -(2**63), 0x7FF0000000000000, -1 << 52)
"""What eight bytes of a column get: as floats the last two are infinity and not a number."""
ROWS = (0x7F800000, 0x7FC00000, -1 << 23, 0x7F000000, 0x501502F9, 0, -1)
"""What four bytes of a row get: infinity, not a number, 1.7e38, 1e10 and others."""


class Input(NamedTuple):
    """A folder that lies: the kind of lie, what it is in words, and its files."""

    kind: str
    about: str
    files: Files


def table_of(files: Files) -> Any:
    """What the manifest says."""
    return json.loads(files[MANIFEST])


def sealed(files: Files, table: Any) -> Files:
    """The files with a manifest whose checksum is right."""
    table = {key: value for key, value in table.items() if key != "sha256"}
    body = json.dumps(table, separators=(",", ":"))
    table["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    text = json.dumps(table, separators=(",", ":")).encode()
    deepest = b"[" * 5000 + b"]" * 5000
    return {**files, MANIFEST: text.replace(json.dumps(DEEPEST).encode(), deepest)}


def told(files: Files, name: str, data: bytes) -> Files:
    """The files with other data in one of them, of which the manifest knows size and checksum."""
    table = table_of(files)
    for entry in [*table["shards"], table["columns"]]:
        if entry["file"] == name:
            entry["bytes"] = len(data)
            entry["sha256"] = hashlib.sha256(data).hexdigest()
    return sealed({**files, name: data}, table)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything stands in a table, itself left out; of long lists the ends."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
        inside = inside if len(inside) < 8 else inside[:1] + inside[-1:]
    for key, item in inside:
        if (*at, key) != ("sha256",):
            yield (*at, key)
            yield from paths(item, (*at, key))


def changed(table: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of a table in which `change` was done to what holds the end of a path, and the end."""
    table = copy.deepcopy(table)
    change(_holder(table, path), path[-1])
    return table


def _drop(inside: Any, key: Any) -> None:
    del inside[key]


def _more(inside: Any, key: Any) -> None:
    if isinstance(inside, list):
        inside.append(copy.deepcopy(inside[key]))
    else:
        inside["more"] = copy.deepcopy(inside[key])


def fields(files: Files, rng: random.Random, share: float = 1.0) -> Iterator[Input]:
    """A share of: every field with every value, missing, once more, and twice."""
    table = table_of(files)
    for path in list(paths(table)):
        where = ".".join(map(str, path))
        for value in VALUES:
            if rng.random() < share:
                made = changed(table, path, lambda at, key, v=value: at.__setitem__(key, v))
                yield Input("field", f"{where} = {str(value)[:40]!r}", sealed(files, made))
        for what, change in (("missing", _drop), ("once more", _more)):
            if rng.random() < share:
                made = changed(table, path, change)
                yield Input("field", f"{where} {what}", sealed(files, made))
        if isinstance(path[-1], str) and rng.random() < share:
            yield Input("field", f"{where} twice", _twice(files, table, path))


def _holder(table: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        table = table[key]
    return table


def _twice(files: Files, table: Any, path: tuple[Any, ...]) -> Files:
    """A key twice in one object, the second time with another value."""

    def mark(inside: Any, key: Any) -> None:
        inside["@twice@"] = inside[key]

    made = sealed(files, changed(table, path, mark))
    key = json.dumps(path[-1]).encode()
    return {**made, MANIFEST: made[MANIFEST].replace(b'"@twice@"', key)}


def structure(files: Files, rng: random.Random) -> Input:
    """Some values of the manifest gone, doubled, or with another one's in their place."""
    table, said = table_of(files), []
    for _ in range(rng.randint(1, 3)):
        known = list(paths(table))
        path, other = rng.choice(known), rng.choice(known)
        taken = copy.deepcopy(_holder(table, other)[other[-1]])

        def put(inside: Any, key: Any, taken: Any = taken) -> None:
            inside[key] = taken

        def bad(inside: Any, key: Any) -> None:
            inside[key] = rng.choice(VALUES)

        def near(inside: Any, key: Any) -> None:
            if type(inside[key]) in (int, float):
                inside[key] += rng.choice((-1, 1, 0.5, 2**40))
            elif isinstance(inside[key], str) and inside[key]:
                at = rng.randrange(len(inside[key]))
                inside[key] = inside[key][:at] + rng.choice("0aé/\n") + inside[key][at + 1 :]
            elif isinstance(inside[key], list):
                rng.shuffle(inside[key])

        change = rng.choice((put, bad, near, near, _drop, _more))
        table = changed(table, path, change)
        said.append(f"{change.__name__.strip('_')} {'.'.join(map(str, path))}")
    return Input("structure", ", ".join(said), sealed(files, table))


def text(files: Files, rng: random.Random) -> Input:
    """Bytes of the manifest, nothing made right."""
    raw, about = _bytes(files[MANIFEST], rng)
    return Input("text", about, {**files, MANIFEST: raw})


def data(files: Files, rng: random.Random) -> Input:
    """Bytes of a data file, its checksum made right or not."""
    name = rng.choice([name for name in sorted(files) if name != MANIFEST])
    raw, about = _bytes(files[name], rng)
    right = rng.random() < 0.7
    made = told(files, name, raw) if right else {**files, name: raw}
    return Input("data, told" if right else "data", f"{name[:6]}: {about}", made)


def values(files: Files, rng: random.Random) -> Input:
    """Numbers in the tensors of a data file, its checksum made right."""
    name = rng.choice([name for name in sorted(files) if name != MANIFEST])
    raw = bytearray(files[name])
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    size = 8 if name.startswith("columns") else 4
    places = (len(raw) - begin) // size
    said = []
    for _ in range(rng.randint(1, 3)):
        at = begin + size * rng.randrange(places)
        number = rng.choice(NUMBERS if size == 8 else ROWS)
        struct.pack_into("<q" if size == 8 else "<i", raw, at, number)
        said.append(f"{at} = {number}")
    return Input("values", f"{name[:7]}: {', '.join(said)}", told(files, name, bytes(raw)))


def header(files: Files, rng: random.Random) -> Input:
    """The header of a data file, its checksum made right."""
    name = rng.choice([name for name in sorted(files) if name != MANIFEST])
    raw = files[name]
    length = struct.unpack("<Q", raw[:8])[0]
    table = json.loads(raw[8 : 8 + length])
    path = rng.choice(list(paths(table)))
    value = rng.choice(VALUES)

    def put(inside: Any, key: Any) -> None:
        inside[key] = value

    change = rng.choice((put, put, _drop, _more))
    new = json.dumps(changed(table, path, change)).encode()
    new += b" " * (-len(new) % 8)
    made = told(files, name, struct.pack("<Q", len(new)) + new + raw[8 + length :])
    return Input("data header", f"{name[:7]}: {path} {str(value)[:40]!r}", made)


def _bytes(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    out, at = bytearray(raw), rng.randrange(len(raw))
    what = rng.choice(("flip", "flip", "put", "cut", "insert", "swap", "end", "repeat"))
    if what == "flip":
        out[at] ^= 1 << rng.randrange(8)
    elif what == "put":
        out[at] = rng.randrange(256)
    elif what == "cut":
        del out[at : at + rng.randint(1, 64)]
    elif what == "insert":
        out[at:at] = rng.randbytes(rng.randint(1, 16))
    elif what == "swap":
        other = rng.randrange(len(raw))
        out[at], out[other] = out[other], out[at]
    elif what == "end":
        del out[at:]
    else:
        out[at:at] = out[at : at + rng.randint(1, 64)]
    return bytes(out), f"{what} at {at}"


RANDOM = (structure, structure, text, data, values, values, header)


def inputs(files: Files, seed: int, randoms: int, share: float = 1.0) -> Iterator[Input]:
    """A share of all field inputs, then random ones of every kind."""
    rng = random.Random(seed)
    yield from fields(files, rng, share)
    for number in range(randoms):
        yield RANDOM[number % len(RANDOM)](files, rng)
