"""What has left a window becomes blocks, wholly or not at all, also where it is interrupted."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from transformers.cache_utils import DynamicCache

from cmr.errors import CMRError
from cmr.integration.capture.block_writer import Captured
from cmr.integration.capture.columns import of_rows
from cmr.integration.capture.leaving_text import LeavingText
from cmr.integration.capture.row_text import RowText
from cmr.integration.capture.window_record import LeftLayers, WindowRecord
from cmr.integration.core import Core
from cmr.integration.decoder.finite import all_finite, not_finite, parts_of, stored_of
from cmr.integration.window.lasting import lasting
from cmr.integration.window.window_layer import WindowLayer
from cmr.kernels.upload import uploaded


def leave(core: Core, record: WindowRecord, finished: bool = False) -> int:
    """Store what has left the window of a record; returns the number of blocks.

    The first row of each group of beams or copies writes. Where an interrupt or a failed
    allocation comes in between, nothing is stored, and the next call does it.
    """
    blocks = 0
    while record.left:
        layers, going = record.left[0]
        try:
            with core.journal.change():
                core.journal.attributes(record, *record.POPPED)
                record.left, record.going = record.left[1:], going
                blocks += _store(core, record, layers, finished)
        except (CMRError, TypeError, ValueError):
            # Refused, and so it would be another time: the text goes on without it.
            _give_up(core, record)
            raise
    record.waits = False
    return blocks


def wait(core: Core, record: WindowRecord) -> None:
    """What could not be stored is kept for another time: of what has left, as much as a window."""
    record.waits, most = True, core.config.window + core.config.memory.sinks
    while sum(_tokens(layers) for layers, _ in record.left) > most:
        _give_up(core, record)


def _give_up(core: Core, record: WindowRecord) -> None:
    """Let go of the oldest of what has left, which is not stored."""
    layers, going = record.left[0]
    record.left, record.going = record.left[1:], going
    record.pop(_tokens(layers))
    core.lost += _tokens(layers)


def leave_rest(
    core: Core,
    record: WindowRecord,
    cache: DynamicCache,
    texts: list[RowText] | None = None,
    rows: Sequence[int] | None = None,
) -> int:
    """Store what the window of a cache still holds, as if it had left; the number of blocks.

    With the sinks, where nothing has left yet. The text may go on: nothing is stored twice. `texts`
    of the rows are those that the record does not know. Of some `rows` alone, these are over:
    nothing that comes in them is stored later. None: of all.
    """
    with lasting():
        blocks = leave(core, record)
        if record.all_stored:
            return blocks
        rest = copy.deepcopy(record) if rows is None else record.of_rows(rows)
        if texts is not None:
            rest.tell(texts)
        rest.with_sinks()
        tokens = rest.rest()
        if not any(tokens):
            return blocks
        layers, there = {}, dict[torch.device, torch.Tensor]()
        for layer in cache.layers:
            assert isinstance(layer, WindowLayer)
            device = layer.keys.device
            if rows is not None and device not in there:
                there[device] = uploaded(torch.tensor(rows), device)
            keys, values = layer.newest(tokens, there.get(device))
            layers[layer.number] = keys.detach(), values.detach()
        rest.let_go(layers)
        with core.journal.change():
            core.journal.attributes(record, "_known")
            blocks += leave(core, rest, finished=True)
            if rows is None:
                record.stored()
            else:
                record.over(rows)
    return blocks


def _store(core: Core, record: WindowRecord, layers: LeftLayers, finished: bool) -> int:
    """Store rotated keys and values `[batch, heads, tokens, dim]` that left, by layer."""
    tokens = _tokens(layers)
    if record.skip(tokens):
        return 0
    core.identity.claim()
    text = LeavingText.pop(record, tokens, core.table, core.writer.kept, finished)
    columns, writing = text.columns, of_rows(record.writers, len(record.padding))
    kept: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {
        n: (writing(layers[n][0])[:, :, text.lead :], writing(layers[n][1])[:, :, text.lead :])
        for n in core.layout.kv_layers
    }
    for number in core.layout.state_layers:
        kept[number] = (columns[f"state{number}"][:, None], None)
    if record.turn != core.identity.turn:
        core.warn(
            "two models",
            "the model's weights were changed in the middle of a text: what leaves the window "
            "of its cache from now on is not stored; begin a new cache",
        )
        return 0
    others = {name: x for name, x in columns.items() if name != "index"}
    if not all_finite([*stored_of(columns["index"], kept), *others.values()]):
        parts = parts_of(columns["index"], kept, others)
        text = _finite_rows(core, text, not_finite(parts, text.mask))
        columns = text.columns
    # Before anything is written: who is told may raise, and nothing is stored then.
    if core.on_leaving is not None:
        core.on_leaving(text)
    captured = Captured(
        sessions=text.sessions,
        token_ids=columns["token_ids"],
        valid=text.valid,
        index=columns["index"],
        layers=kept,
        rope=columns["rope"],
        reach=columns.get("reach"),
        relevance=text.relevance(core.scorer, core.ring.block_size),
        keep=text.keep,
        kinds=text.kinds,
    )
    blocks = core.writer.write(captured)
    text.note(core.table)
    return blocks


def _finite_rows(core: Core, text: LeavingText, bad: Mapping[str, torch.Tensor]) -> LeavingText:
    """The text without the rows of which some tokens are not finite; positions go on."""
    mask = text.mask
    core.journal.attributes(core, "not_finite")
    for name, tokens in bad.items():
        rows = tokens.any(1)
        session = core.name_of(text.sessions[int(rows.int().argmax())])
        core.not_finite += int(mask[rows].sum())
        mask[rows] = False
        core.warn(
            "not finite",
            f"session {session!r}: NaN or infinite states of {name} left the window; these "
            "tokens are not stored, and memory.stats()['not_finite_tokens'] counts such ones",
        )
    return text.only(mask)


def _tokens(layers: LeftLayers) -> int:
    return next(iter(layers.values()))[0].shape[2]
