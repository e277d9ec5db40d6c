"""A `LayeredMemoryBuffer` as content to be saved, and back again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from cmr.errors import ConfigError
from cmr.memory.buffer.layer_store import COLUMNS, LONG_TERM, RECENT, WORKING, LayerStore
from cmr.memory.buffer.layers import Layers, column
from cmr.memory.store import Batch, Kind, Part, Saved
from cmr.memory.store.fields import hold
from cmr.memory.store.form import corrupt
from cmr.memory.store.schema import BUFFER

WHAT = "LayeredMemoryBuffer"
# The two forms of a layer's entries, each a kind of rows of its own: whole states, or codes.
_FULL, _CODES = "state", "codes"
_LIMITS = {
    "position": (0, None),
    "token_id": (-1, None),
    "access_count": (0, None),
    "relevance": (0, 1),
    "tier": (RECENT, LONG_TERM),
    "slot": (0, None),
}
_BESIDE = {name: COLUMNS.get(name, torch.int64) for name in (*_LIMITS, "last_access")}


class BufferContent:
    """All entries of some layers, as `cmr.memory.store.save` takes them."""

    def __init__(self, layers: Layers, settings: Mapping[str, Any]) -> None:
        picked = layers.find()
        self._slots = torch.cat([torch.empty(0, dtype=torch.int64), *(at for _, _, at in picked)])
        self._store_of: list[LayerStore] = []  # by kind
        self.kinds: list[Kind] = []
        forms: list[list[int | str]] = []
        kinds = [torch.empty(0, dtype=torch.int64)]
        for number, store, slots in picked:
            # The kind of codes comes right behind that of whole states.
            kinds.append(len(self.kinds) + store.in_codes(slots).long())
            for form, parts in _forms(store.hidden, store.dtype).items():
                if form == _FULL or store.reduces:
                    self.kinds.append(Kind(f"layer{number}.{form}", parts))
                    forms.append([number, form])
                    self._store_of.append(store)
        self.kind = torch.cat(kinds)
        self.header: dict[str, Any] = {
            "what": WHAT,
            "forms": forms,
            "clock": layers.clock,
            "settings": dict(settings),
            "names": {str(number): name for number, name in sorted(layers.names.items())},
        }
        self.numbers, self.session = column(picked, "created"), column(picked, "sequence")
        self.columns = {
            name: self._slots if name == "slot" else column(picked, name).to(dtype)
            for name, dtype in _BESIDE.items()
        }

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        """One part of entries of one kind, `[k, *shape]` on the CPU."""
        store, slots = self._store_of[kind], self._slots[at]
        if part == _FULL:
            return store.states(slots).cpu()
        codes, scale = store.codes(slots)
        return (codes if part == _CODES else scale).cpu()


def restore(
    path: str | os.PathLike[str],
    key: bytes | str | None,
    settings: Mapping[str, Any],
    into: Layers,
    device: torch.device,
) -> str:
    """Fill empty layers with a saved buffer that is checked from end to end; returns its id."""
    opened = Saved.open(path, key=key)
    header = opened.header
    if header.get("what") != WHAT:
        corrupt(opened.path, f"a saved {WHAT} expected, got another kind of memory")
    hold(BUFFER, header, path, under="header")
    if header["settings"] != dict(settings):
        raise ConfigError(
            f"{opened.path}: settings {dict(settings)} expected, got {header['settings']}"
        )
    # The checksums of all files first: nothing is read of a damaged save.
    opened.verify()
    forms = _forms_in(opened, codes=bool(settings["reduce_long_term"]))
    into.clock = header["clock"]
    into.names = {int(number): name for number, name in header["names"].items()}
    _check_columns(opened, into.clock)
    # Only layers that hold something: the bytes in the folder then pay for a row's width.
    held = {forms[kind][0] for kind in opened.kind.unique().tolist()}
    for (number, form), kind in zip(forms, opened.kinds, strict=True):
        if form == _FULL and number in held:
            state = kind.parts[_FULL]
            into.new_store(number, state.shape[0], state.dtype, device)
    for batch in opened.batches():
        number, form = forms[batch.kind]
        columns = {name: opened.columns[name][batch.positions] for name in _BESIDE}
        slots = columns.pop("slot")
        columns["created"] = opened.numbers[batch.positions]
        columns["sequence"] = opened.session[batch.positions]
        store = into.stores[number]
        # A file that was tampered with may pass its checksums, and must not make such a buffer.
        wrong = _wrong(store, slots, columns["tier"], form, batch, settings)
        if wrong:
            corrupt(opened.path, f"layer {number}: {wrong}")
        store.restore(slots, columns, batch.parts)
    return opened.id


def _wrong(
    store: LayerStore,
    slots: torch.Tensor,
    tier: torch.Tensor,
    form: str,
    batch: Batch,
    settings: Mapping[str, Any],
) -> str | None:
    """What a layer cannot take of a batch; None: it can take all of it."""
    taken = store.columns["created"] > 0
    at = slots[slots < store.slots]
    if len(at) < len(slots) or len(at.unique()) < len(at) or bool(taken[at].any()):
        return "a slot of its own for each entry expected"
    for place, name in ((RECENT, "recent"), (WORKING, "working")):
        if store.by_tier[place] + int((tier == place).sum()) > settings[name]:
            return f"more entries than fit the tier {name}"
    if store.reduces and bool(((tier == LONG_TERM) != (form == _CODES)).any()):
        return "codes in the long-term tier only expected"
    for part in (_FULL, "scale"):
        if part in batch.parts and not bool(torch.isfinite(batch.parts[part]).all()):
            return "finite values expected"
    return None


def _forms(hidden: int, dtype: torch.dtype) -> dict[str, dict[str, Part]]:
    codes = {_CODES: Part(torch.int8, (hidden,)), "scale": Part(torch.float32)}
    return {_FULL: {_FULL: Part(dtype, (hidden,))}, _CODES: codes}


def _forms_in(opened: Saved, codes: bool) -> list[tuple[int, str]]:
    """Layer and form of each kind as the header names them, checked against the kinds."""
    forms = opened.header["forms"]
    if len(forms) != len(opened.kinds):
        corrupt(opened.path, f"forms of {len(opened.kinds)} kinds expected")
    hidden: dict[int, Part] = {}
    out: list[tuple[int, str]] = []
    for form, kind in zip(forms, opened.kinds, strict=True):
        number, name = form
        if name == _FULL and _FULL in kind.parts and number not in hidden and number >= 0:
            hidden[number] = kind.parts[_FULL]
        state = hidden.get(number)
        known = name in (_FULL, _CODES)[: 1 + codes] and (number, name) not in out
        if (
            not known
            or state is None
            or len(state.shape) != 1
            or not state.dtype.is_floating_point
            or dict(kind.parts) != _forms(state.shape[0], state.dtype)[name]
        ):
            corrupt(opened.path, f"kind {kind.name!r} does not fit a layer")
        out.append((number, name))
    return out


def _check_columns(opened: Saved, clock: int) -> None:
    columns = opened.columns
    for name, dtype in _BESIDE.items():
        found = columns.get(name)
        if found is None or found.dtype != dtype or found.ndim != 1:
            corrupt(opened.path, f"a column {name!r} of {dtype} expected")
    limits: dict[str, tuple[int, int | None]] = {**_LIMITS, "last_access": (0, clock)}
    checked = [(name, columns[name], *limits[name]) for name in _BESIDE]
    checked.append(("numbers", opened.numbers, 1, clock))
    checked.append(("session", opened.session, 0, None))
    for name, found, low, high in checked:
        # NaN compares false either way, so it is refused, too.
        fits = (found >= low) & (found <= (high if high is not None else found))
        if not bool(fits.all()):
            corrupt(opened.path, f"column {name!r}: values in {low}..{high or ''} expected")
