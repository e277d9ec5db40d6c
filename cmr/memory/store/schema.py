"""What the files of a memory may say: type, range and length of every field, declared once.

It is looked at before anything is allocated and before another file is opened. What is not declared
is refused.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import torch

from cmr.config.topics import MAX_LIFETIME
from cmr.memory.seen import MAX_TEXTS, MAX_TOKENS
from cmr.memory.sessions import MAX_NAME, MAX_SESSIONS, fit_name
from cmr.memory.slot_ledger import TIERS
from cmr.memory.store.fields import (
    Check,
    Wrong,
    anything,
    items,
    maybe,
    named,
    one_of,
    real,
    table,
    text,
    whole,
    wholes,
    wrong,
)
from cmr.memory.store.folder import FILE_NAME
from cmr.memory.store.form import DTYPES, HASH, MAX_BYTES, MAX_DIMS, NAME

MAX_CLOCK, MAX_COUNT = (1 << 62) - 1, 1 << 62
"""Block numbers and counts leave room for 2^62 more in 64 bits."""
MAX_POSITION = 1 << 48
MAX_SLOTS = 1 << 40
MAX_SHARDS, MAX_KINDS, MAX_PARTS = 1 << 20, 1 << 12, 1 << 14
MAX_FILLED = 8
MAX_TEXT = 1 << 10
CALIBRATIONS = ("auto", "sampled", "none", "file")
"""What a header says of a calibration: 'file' is one of the user's own, who gives it again."""


# -- the manifest ----------------------------------------------------------------------------------

_DIGEST = text("64 hexadecimal digits", re.compile(r"[0-9a-f]{64}"))
_PLAIN = text("a name of letters, digits, '_', '.', '-'", NAME)
_ID = text("32 hexadecimal digits", re.compile(r"[0-9a-f]{32}"))
_DTYPE = one_of(*DTYPES)
_SIZE = whole(0, MAX_BYTES)
_SIZES = wholes(0, 1 << 40, MAX_DIMS)


def _shape(value: Any) -> None:
    _SIZES(value)
    # Sizes of 0 counted as 1: strides are counted so, too.
    if math.prod(max(size, 1) for size in value) > MAX_BYTES:
        raise wrong("fewer than 2^62 values", str(value))


def _fill(value: Any) -> None:
    table(dtype=_DTYPE, value=anything)(value)
    dtype, number = DTYPES[value["dtype"]], value["value"]
    low, high = 0.0, 1.0
    if dtype.is_floating_point:
        low, high = -torch.finfo(dtype).max, torch.finfo(dtype).max
    elif dtype != torch.bool:
        high = torch.iinfo(dtype).max
    kind = float if dtype.is_floating_point else int
    if type(number) is not kind or not low <= number <= high:
        raise wrong(f"one that fits {dtype}", number).under("value")


def _manifest(value: Any) -> None:
    _FIELDS(value)
    kinds = [kind["name"] for kind in value["kinds"]]
    if len(set(kinds)) != len(kinds):
        raise Wrong("two kinds have the same name").under("kinds")
    columns, shards = value["columns"], value["shards"]
    for at, shard in enumerate(shards):
        if shard["kind"] >= len(kinds):
            expected = f"an integer in 0..{len(kinds) - 1}"
            raise wrong(expected, shard["kind"]).under(f"shards.{at}.kind")
    files = [columns["file"], *(shard["file"] for shard in shards)]
    if len(set(files)) != len(files):
        raise Wrong("a data file is named twice").under("shards")
    # Of what a folder has on the disk, so that nothing is filled for more blocks than are there.
    for name in ("numbers", "session"):
        if name not in columns["parts"]:
            raise Wrong(f"a column {name!r} expected, got none").under("columns")
    both = columns["parts"].keys() & columns["fill"].keys()
    if both:
        raise Wrong(f"column {min(both)!r} is both in a file and filled").under("columns")
    rows = sum(sum(number >= 0 for number in shard["numbers"]) for shard in shards)
    if columns["rows"] != rows:
        says = f"{rows} expected, a row for each block in 'shards', got {columns['rows']}"
        raise Wrong(says).under("columns.rows")


_PARTS = named(_PLAIN, table(dtype=_DTYPE, shape=_shape), MAX_PARTS)
_FILE: dict[str, Check] = {
    "file": text("the plain name of a data file", FILE_NAME),
    "bytes": _SIZE,
    HASH: _DIGEST,
}
_FIELDS = table(
    format=one_of("cmr-memory"),
    format_version=whole(1, 1 << 16),
    id=_ID,
    library=text("a version", re.compile(r"[ -~]{0,64}")),
    kinds=items(table(name=_PLAIN, parts=_PARTS), MAX_KINDS),
    shards=items(
        table(**_FILE, kind=whole(0, MAX_KINDS), numbers=wholes(-1, (1 << 63) - 1, 1 << 26)),
        MAX_SHARDS,
    ),
    columns=table(**_FILE, rows=_SIZE, parts=_PARTS, fill=named(_PLAIN, _fill, MAX_FILLED)),
    header=named(anything, anything, MAX_PARTS),
)
MANIFEST: Check = _manifest

# -- the header of an attached model's memory ------------------------------------------------------

_LARGEST = float(torch.finfo(torch.float32).max)
_COUNTS = whole(1, 1 << 24)
SHORT = text(
    f"at most {MAX_TEXT} printable characters",
    re.compile(f"[^\\x00-\\x1f\\ud800-\\udfff]{{0,{MAX_TEXT}}}"),
)


def _name(value: Any) -> None:
    if not isinstance(value, str) or not fit_name(value):
        raise wrong(f"1 to {MAX_NAME} printable characters", value)


def _setting(value: Any, depth: int = 1) -> None:
    # What the settings' own checks are given is plain and short; they say the rest.
    if isinstance(value, dict) and depth < 3:
        named(SHORT, partial(_setting, depth=depth + 1), 1 << 8)(value)
    elif isinstance(value, list) and depth > 1:
        items(partial(_setting, depth=3), MAX_KINDS)(value)
    elif isinstance(value, str):
        SHORT(value)
    elif type(value) is int:
        whole(-MAX_COUNT)(value)
    elif value is not None and type(value) not in (bool, float):
        raise wrong("a setting", value)


SETTINGS = named(SHORT, _setting, 1 << 8)


def forget_paths(config: dict[str, Any]) -> None:
    """Takes names of files out of settings that an older version saved."""
    memory, retrieval = config.get("memory"), config.get("retrieval")
    if isinstance(memory, dict):
        memory.pop("long_term_folder", None)
    if isinstance(retrieval, dict) and retrieval.get("calibration", "auto") not in CALIBRATIONS:
        retrieval["calibration"] = CALIBRATIONS[-1]


def _tensor(value: Any) -> None:
    """A tensor of float32 or int64: data type, shape, values one after the other."""
    if not isinstance(value, list) or len(value) != 3:
        raise wrong("a data type, a shape and values", value)
    dtype, shape, values = value
    one_of("F32", "I64")(dtype)
    _shape(shape)
    if dtype == "I64":
        wholes(0, MAX_COUNT, 1 << 26)(values)
    elif not isinstance(values, list) or not all(
        type(x) is float and abs(x) <= _LARGEST for x in values
    ):
        raise wrong("finite numbers of 32 bits", values)
    if len(values) != math.prod(shape):
        raise wrong(f"{math.prod(shape)} values", len(values))


def _tiers(value: Any) -> None:
    _PAIRS(value)
    for at, pair in enumerate(value):
        if len(pair) != 2:
            raise wrong("a name and a number of blocks", pair).under(at)
        try:
            one_of(*TIERS)(pair[0])
            whole(1, MAX_SLOTS)(pair[1])
        except Wrong as error:
            raise error.under(at) from None
    names = [name for name, _ in value]
    if names[:1] != [TIERS[0]] or names != [name for name in TIERS if name in names]:
        raise wrong(f"{TIERS[0]!r}, then others of {', '.join(TIERS)} in order,", str(names))


_PAIRS = items(items(anything, 2), len(TIERS))


def _text(value: Any) -> None:
    """What is known of a text: where its runs of tokens stand in it and in the session's."""
    _TEXT(value)
    runs = [value[name] for name in ("at", "positions", "tokens")]
    if len({len(column) for column in runs}) != 1:
        raise Wrong("as many expected of 'at', 'positions' and 'tokens'")
    stop = 0
    for at, tokens in zip(value["at"], value["tokens"], strict=True):
        if not stop <= at <= MAX_TOKENS - tokens:
            raise wrong(f"runs one behind the other within {MAX_TOKENS} tokens", at).under("at")
        stop = at + tokens


_PLACES = wholes(0, MAX_TOKENS, MAX_TOKENS)
_TEXT = table(
    at=_PLACES,
    positions=wholes(0, MAX_POSITION, MAX_TOKENS),
    tokens=wholes(1, MAX_TOKENS, MAX_TOKENS),
    cuts=_PLACES,
)


def _header(value: Any) -> None:
    _HEADER(value)
    for name in ("name", "number"):
        found = {session[name] for session in value["sessions"]}
        if len(found) != len(value["sessions"]):
            raise Wrong(f"two sessions have the same {name}").under("sessions")
    slots = sum(slots for _, slots in value["tiers"])
    if value["limit"] > slots:
        raise wrong(f"at most the {slots} blocks of all tiers", value["limit"]).under("limit")
    if value["index"] is not None and not value["calibrated"]:
        raise wrong("None where nothing is calibrated", value["index"]).under("index")


_HEADER = table(
    model=table(
        family=SHORT,
        hidden_size=_COUNTS,
        layers=_COUNTS,
        kv_heads=_COUNTS,
        head_dim=_COUNTS,
        dtype=SHORT,
        weights=_DIGEST,
    ),
    model_name=text("a plain name, or ''", re.compile(r"[^/\x00-\x1f\ud800-\udfff]{0,255}")),
    tokenizer=maybe(_DIGEST),
    config=SETTINGS,
    store=one_of("kv", "states", "tokens"),
    index_layer=whole(0, 1 << 24),
    index=maybe(_DIGEST),
    calibrated=one_of(True, False),
    clock=whole(0, MAX_CLOCK),
    limit=whole(0, MAX_SLOTS),
    tiers=_tiers,
    sessions=items(
        table(
            name=_name,
            number=whole(),
            position=whole(0, MAX_POSITION),
            ttl=maybe(real(0, MAX_LIFETIME)),
            uids=items(_ID, MAX_SESSIONS),
            last=maybe(whole(0, MAX_CLOCK)),
            adapters=named(
                _name, text("a checksum or ''", re.compile(r"(?:[0-9a-f]{64})?")), 1 << 8
            ),
            texts=items(_text, MAX_TEXTS),
        ),
        MAX_SESSIONS,
    ),
    scorer=named(SHORT, _tensor, MAX_KINDS),
)
HEADER: Check = _header

# -- the header of a `LayeredMemoryBuffer` ---------------------------------------------------------


# Names of sequences are the caller's own, of any kind.
NAMES = named(
    text("a number", re.compile("[0-9]{1,18}")),
    text("a text", re.compile(f"(?s:.{{0,{1 << 16}}})")),
    MAX_SESSIONS,
)


def _form(value: Any) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise wrong("a layer and a form", value)
    whole(0, 1 << 24)(value[0])
    SHORT(value[1])


BUFFER = table(
    what=SHORT,
    forms=items(_form, MAX_KINDS),
    clock=whole(0, MAX_CLOCK),
    settings=SETTINGS,
    names=NAMES,
)
