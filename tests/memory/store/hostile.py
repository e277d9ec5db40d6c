"""Folders that lie: each function turns a good saved memory into a bad one."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Harm = Callable[[Path], None]


def first(folder: Path, role: str = "blocks") -> Path:
    return sorted(folder.glob(f"{role}-*"))[0]


def read(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def write(folder: Path, table: Any) -> None:
    """Writes a manifest whose checksum is right, so that only what it says can be refused."""
    table.pop("sha256", None)
    body = json.dumps(table, separators=(",", ":"))
    table["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(table, separators=(",", ":")))


def manifest(change: Callable[[Any], Any]) -> Harm:
    """A change of the manifest."""

    def harm(folder: Path) -> None:
        table = read(folder)
        change(table)
        write(folder, table)

    return harm


def put(*path_and_value: Any) -> Harm:
    """Puts a value at a path of keys into the manifest."""
    *path, last, value = path_and_value

    def change(table: Any) -> None:
        for key in path:
            table = table[key]
        table[last] = value

    return manifest(change)


def drop(*path: Any) -> Harm:
    """Removes a key from the manifest."""
    *path, last = path

    def change(table: Any) -> None:
        for key in path:
            table = table[key]
        del table[last]

    return manifest(change)


def text(change: Callable[[bytes], bytes]) -> Harm:
    """A change of the manifest's bytes."""

    def harm(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return harm


def data(change: Callable[[bytes], bytes], role: str = "blocks", told: bool = True) -> Harm:
    """A change of a data file's bytes; `told`: the manifest has its new size and checksum."""

    def harm(folder: Path) -> None:
        path = first(folder, role)
        path.write_bytes(changed := change(path.read_bytes()))
        if not told:
            return
        table = read(folder)
        for entry in [*table["shards"], table["columns"]]:
            if entry["file"] == path.name:
                entry["bytes"] = len(changed)
                entry["sha256"] = hashlib.sha256(changed).hexdigest()
        write(folder, table)

    return harm


def header(change: Callable[[Any], Any], role: str = "blocks") -> Harm:
    """A change of a data file's own header, of which the manifest knows."""

    def in_file(raw: bytes) -> bytes:
        length = struct.unpack("<Q", raw[:8])[0]
        table = json.loads(raw[8 : 8 + length])
        change(table)
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    return data(in_file, role)


def tensor(name: str, key: str, value: Any, role: str = "blocks") -> Harm:
    """Another data type, shape or place of a tensor in a data file."""
    return header(lambda table: table[name].__setitem__(key, value), role)


def flip(at: int) -> Callable[[bytes], bytes]:
    """One bit flipped, at a byte counted from either end."""

    def change(raw: bytes) -> bytes:
        out = bytearray(raw)
        out[at] ^= 16
        return bytes(out)

    return change


def swap_names(folder: Path) -> None:
    """Two data files change places."""
    a, b = sorted(folder.glob("blocks-*"), key=lambda path: path.stat().st_size)[:2]
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)


def in_place_of(role: str, make: Callable[[Path], None]) -> Harm:
    """Something else where a file should be."""

    def harm(folder: Path) -> None:
        path = folder / "manifest.json" if role == "manifest" else first(folder, role)
        path.rename(folder.parent / "aside")
        make(path)

    return harm


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "aside")


def twice_in_shard(table: Any) -> None:
    numbers = table["shards"][0]["numbers"]
    numbers[0] = numbers[1]


def another_kind(table: Any) -> None:
    for shard in table["shards"]:
        shard["kind"] = 1 - shard["kind"]


def shard_twice(table: Any) -> None:
    table["shards"].append(dict(table["shards"][0]))


def overlapping(table: Any) -> None:
    """Two tensors of the same size at the same place."""
    names = sorted(table, key=lambda n: table[n]["data_offsets"])
    table[names[1]]["data_offsets"][0] -= 8
    table[names[1]]["data_offsets"][1] -= 8


def escaping(name: str) -> Harm:
    """A data file by a name that leads elsewhere, where a file waits."""

    def harm(folder: Path) -> None:
        path = first(folder)
        outside = folder.parent / "outside.safetensors"
        for target in (outside, folder / "sub" / "x.safetensors", folder / ".x.safetensors"):
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
        table = read(folder)
        for entry in table["shards"]:
            if entry["file"] == path.name:
                entry["file"] = name.format(outside=outside)
        write(folder, table)

    return harm


DEEP = 100_000

# What is opened must be refused with a message that matches.
AT_OPENING: dict[str, tuple[Harm, str]] = {
    # the manifest's text
    "empty": (text(lambda raw: b""), "manifest.json: JSON expected"),
    "half": (text(lambda raw: raw[: len(raw) // 2]), "manifest.json: JSON expected"),
    "binary": (text(lambda raw: b"\x80\x04\x95" + raw), "UTF-8 text expected, got byte 0x80 at 0"),
    "utf16": (text(lambda raw: raw.decode().encode("utf-16")), "UTF-8"),
    "deep": (text(lambda raw: b"[" * DEEP + b"]" * DEEP), "nested too deeply"),
    "deep header": (
        text(
            lambda raw: raw.replace(b'"header":{', b'"header":{"x":%s,' % (b"[" * 150 + b"]" * 150))
        ),
        "nesting|checksum",
    ),
    "array": (text(lambda raw: b"[1,2]"), "an object with 'format' expected, got list"),
    "nan": (text(lambda raw: raw.replace(b"0.1", b"NaN")), "finite numbers expected, got NaN"),
    "infinite": (text(lambda raw: raw.replace(b"0.1", b"1e999")), "finite numbers expected"),
    "endless number": (text(lambda raw: raw.replace(b"0.1", b"9" * 9999)), "JSON expected"),
    "key twice": (text(lambda raw: b'{"id":1,' + raw[1:]), "a key stands twice"),
    "flipped": (text(lambda raw: raw.replace(b"anna", b"anne")), "checksum"),
    "number changed": (text(lambda raw: raw.replace(b'"count":24', b'"count":25')), "checksum"),
    "no checksum": (
        text(
            lambda raw: json.dumps(
                {k: v for k, v in json.loads(raw).items() if k != "sha256"}
            ).encode()
        ),
        "'sha256' is missing",
    ),
    # what it says
    "other format": (put("format", "zip"), "'cmr-memory' expected"),
    "no format": (drop("format"), "'format' is missing"),
    "newer": (put("format_version", 5), "format version 4 or older expected, got 5"),
    "much newer": (put("format_version", 10**300), "format version 4 or older expected, got 1000"),
    "version zero": (put("format_version", 0), "from 1 on expected, got 0"),
    "version true": (put("format_version", True), "int expected, got bool"),
    "version text": (put("format_version", "2"), "int expected, got str"),
    "bad id": (put("id", "../../etc"), "'id': 32 hexadecimal digits"),
    "no kinds": (drop("kinds"), "'kinds' is missing"),
    "kinds of numbers": (
        put("kinds", [1, 2]),
        "kinds.0': an object with 'name', .*got 1",
    ),
    "kind twice": (put("kinds", 1, "name", "full"), "two kinds"),
    "kind name": (put("kinds", 0, "name", "a/b"), "a name of letters"),
    "unknown dtype": (
        put("kinds", 0, "parts", "index", "dtype", "C64"),
        "dtype': one of .* got 'C64'",
    ),
    "pickled dtype": (put("kinds", 0, "parts", "index", "dtype", ["O"]), "one of .*got list of 1"),
    "negative shape": (
        put("kinds", 0, "parts", "index", "shape", [-4, -6]),
        "shape': integers in 0.*-4",
    ),
    "huge shape": (put("kinds", 0, "parts", "index", "shape", [2**39, 2**39]), "fewer than 2"),
    "zero of huge": (put("kinds", 0, "parts", "index", "shape", [0, 2**39, 2**39]), "fewer than 2"),
    "many dims": (
        put("kinds", 0, "parts", "index", "shape", [1] * 1000),
        "at most 8 .*list of 1000",
    ),
    "other shape": (put("kinds", 0, "parts", "index", "shape", [6, 4]), r"shape \[.*, 6, 4\] exp"),
    "other dtype": (put("kinds", 0, "parts", "index", "dtype", "F16"), "data type F16 expected"),
    "part more": (put("kinds", 0, "parts", "x", {"dtype": "F16", "shape": []}), "missing: ..x"),
    "part less": (drop("kinds", 0, "parts", "index"), "not expected: ..index"),
    "kind out of range": (put("shards", 0, "kind", 7), r"integer in 0\.\.1 expected, got 7"),
    "bytes negative": (
        put("shards", 0, "bytes", -1),
        "0.bytes': an integer in 0.*, got -1",
    ),
    "bytes huge": (put("shards", 0, "bytes", 2**61), "bytes expected, got"),
    "bytes text": (put("shards", 0, "bytes", "100"), "an integer in 0.*, got '100'"),
    "bad checksum": (put("shards", 0, "sha256", "0"), "64 hexadecimal digits"),
    "numbers text": (put("shards", 0, "numbers", "abc"), "a list of at most .*, got 'abc'"),
    "number of text": (put("shards", 0, "numbers", 0, "3"), "numbers': integers in -1.*, got '3'"),
    "number huge": (put("shards", 0, "numbers", 0, 2**63), "numbers': integers in -1.*, got 9223"),
    "number unknown": (put("shards", 0, "numbers", 0, 999), "columns do not name"),
    "number twice": (manifest(twice_in_shard), "a row for each of 24 blocks"),
    "row missing": (
        put("shards", 0, "numbers", 0, -1),
        "23 expected, a row .*, got 24",
    ),
    "rows fewer": (
        manifest(lambda t: t["shards"][0]["numbers"].pop()),
        "23 expected, a row for each",
    ),
    "kinds swapped": (manifest(another_kind), "tensors missing|of another kind"),
    "file twice": (manifest(shard_twice), "a data file is named twice"),
    "shard missing": (manifest(lambda t: t["shards"].pop()), r"\d+ expected, a row for each block"),
    "no columns": (drop("columns"), "'columns' is missing"),
    "column rows": (put("columns", "rows", 2**50), "24 expected, .*, got 1125899906842624"),
    "column as fill": (
        put("columns", "fill", "kind", {"dtype": "I64", "value": 0}),
        "both in a file and filled",
    ),
    "fill too big": (put("columns", "fill", "x", {"dtype": "I8", "value": 999}), "fits torch.int8"),
    "header list": (put("header", [1]), "'header': an object of .*, got list of 1"),
    # names that lead out
    "parent": (escaping("../outside.safetensors"), "plain name of a data file"),
    "absolute": (escaping("{outside}"), "plain name of a data file"),
    "deeper": (escaping("sub/x.safetensors"), "plain name of a data file"),
    "hidden": (escaping(".x.safetensors"), "plain name of a data file"),
    "null byte": (escaping("a\0b.safetensors"), "plain name of a data file"),
    "the manifest itself": (put("shards", 0, "file", "manifest.json"), "plain name of a data file"),
    # what is not a file
    "manifest is a link": (in_place_of("manifest", link), "manifest.json: a regular file"),
    "shard is a link": (in_place_of("blocks", link), "a regular file expected"),
    "shard is a folder": (in_place_of("blocks", Path.mkdir), "a regular file expected"),
    "shard is a pipe": (in_place_of("blocks", os.mkfifo), "a regular file expected"),
    "manifest is a pipe": (in_place_of("manifest", os.mkfifo), "a regular file expected"),
    "columns is a link": (in_place_of("columns", link), "a regular file expected"),
    "shard gone": (in_place_of("blocks", lambda path: None), "No such file"),
    # data files
    "truncated": (data(lambda raw: raw[:-5], told=False), "bytes expected, got"),
    "truncated, told": (data(lambda raw: raw[:-8]), "within the file expected"),
    "longer": (data(lambda raw: raw + b"x", told=False), "bytes expected, got"),
    "longer, told": (data(lambda raw: raw + bytes(8)), "bytes expected, got"),
    "nothing, told": (data(lambda raw: b""), "at least 8 bytes expected, got 0"),
    "header length": (data(lambda raw: b"\xff" * 8 + raw[8:]), "header of at most"),
    "header length 2": (
        data(lambda raw: struct.pack("<Q", len(raw)) + raw[8:]),
        "header of at most",
    ),
    "header of 20 MiB": (
        data(lambda raw: struct.pack("<Q", 20 << 20) + b" " * (20 << 20)),
        "header of at most 16777216 bytes, got 20971520",
    ),
    "header of text": (data(lambda raw: raw[:8] + b"x" + raw[9:]), "JSON expected"),
    "header not utf-8": (data(lambda raw: raw[:8] + b'{"\xff' + raw[11:]), "UTF-8"),
    "data header list": (
        data(lambda raw: struct.pack("<Q", 2) + b"[]" + raw[10:]),
        "the header is no JSON object",
    ),
    "header deep": (
        data(lambda raw: struct.pack("<Q", 2 * DEEP) + b"[" * DEEP + b"]" * DEEP),
        "nested too deeply",
    ),
    "tensor dtype": (tensor("index", "dtype", "F32"), "data type .* expected, got 'F32'"),
    "tensor shape": (tensor("index", "shape", [1, 4, 6]), "shape .* expected, got"),
    "tensor offsets": (tensor("index", "data_offsets", [0, 2**62]), "within the file"),
    "tensor backwards": (tensor("index", "data_offsets", [96, 0]), "within the file"),
    "tensor negative": (tensor("index", "data_offsets", [-96, 0]), "within the file"),
    "tensor of text": (tensor("index", "data_offsets", ["0", "96"]), "two offsets expected"),
    "one offset": (tensor("index", "data_offsets", [0]), "two offsets expected"),
    "tensor a list": (header(lambda t: t.__setitem__("index", [])), "an object with 'dtype'"),
    "overlap": (header(overlapping), "tensors side by side|no multiple"),
    "tensor more": (header(lambda t: t.__setitem__("x", t["index"])), "not expected: ..x"),
    "tensor less": (header(lambda t: t.pop("index")), "missing: ..index"),
    "column shape": (tensor("session", "shape", [1], "columns"), r"shape \[24\] expected"),
    "column flipped": (data(flip(-1), "columns", told=False), "checksum"),
    "files swapped": (swap_names, "bytes expected|tensors missing|shape"),
}
