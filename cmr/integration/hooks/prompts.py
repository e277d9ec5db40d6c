"""What a `generate` was given, and what of it is to be stored: each token of a text once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cmr.integration.capture.row_text import RowText
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.requests.request import Request
from cmr.memory.seen import recognised


@dataclass(frozen=True, eq=False)
class Prompt:
    """The inputs of a `generate`, on the CPU.

    Attributes:
        ids: `[inputs, tokens]`.
        mask: the same shape, bool, False for padding; None: there is none.
        ends: `[n]` ids that end an answer.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    ends: torch.Tensor

    @classmethod
    def of(
        cls, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], ids: Any
    ) -> Prompt | None:
        """The prompt of a call of `generate`; None where it has no token ids."""
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.is_floating_point():
            return None
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape:
            mask = None
        ends = ends_of(model, args, kwargs)
        return cls(ids.cpu(), None if mask is None else mask.bool().cpu(), ends)

    def row(self, number: int, padding: int) -> tuple[torch.Tensor, bool]:
        """Ids of an input behind its padding, and whether these are one text without holes."""
        whole = self.mask is None or bool(self.mask[number, padding:].all())
        return self.ids[number, padding:], whole


def setting_of(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """What a `generate` of these arguments goes by: their own settings before the model's."""
    given = args[0] if args else kwargs.get("generation_config")
    configs = [vars(config) for config in (given, model.generation_config) if config is not None]
    found = [kwargs.get(name), *(config.get(name) for config in configs)]
    return next((value for value in found if value is not None), None)


def ends_of(model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
    """Ids `[n]` that end an answer, and what rows that ended are filled with."""
    ends = setting_of(model, args, kwargs or {}, "eos_token_id")
    if ends is None:
        return torch.zeros(0, dtype=torch.int64)
    pad = setting_of(model, args, kwargs or {}, "pad_token_id")
    found = [torch.as_tensor(some).flatten().cpu() for some in (ends, pad) if some is not None]
    return torch.cat(found).long()


def follow(core: Core, request: Request, record: WindowRecord) -> None:
    """Tell the record of a cache what text its rows are, by the prompt of a `generate`."""
    prompt, batch = request.prompt, len(record.sessions)
    if prompt is None or batch % len(prompt.ids):
        return
    group, before, texts = batch // len(prompt.ids), record.texts, list[RowText]()
    if record.seen > prompt.ids.shape[1]:  # a part of the text, whose place nobody knows
        return
    held = record.tail("token_ids", record.held).cpu() if record.seen else None
    for row, padding in enumerate(record.padding):
        if before is None and row % group:
            texts.append(texts[-1])  # of the same input
            continue
        ids, whole = prompt.row(row // group, padding)
        unsaid, told = torch.zeros(len(ids), dtype=torch.bool), None
        if core.config.remember == "all" and core.speech is not None:
            said = core.speech.said(ids, begins=True)
            unsaid, told = ~said, core.speech.told(ids, said, core.vocabulary)
        if before is not None:
            assert held is not None
            there = ids[: record.seen - padding].clone()
            there[max(0, len(there) - held.shape[1]) :] = held[row, -len(there) :]
            texts.append(before[row].going_on(unsaid, there, group == 1, told))
            continue
        sure = group == 1 or request.caches is not None
        text = RowText(unsaid, prompt.ends, sure=sure, told=told)
        # Whoever wants the whole text of a cache has it stored whatever was before.
        if whole and request.caches is None:
            text = _known(core, record.sessions[row], ids, text)
        texts.append(text)
    record.tell(texts)


def _known(core: Core, session: int, ids: torch.Tensor, text: RowText) -> RowText:
    """The text where what its session has seen of it is not stored again."""
    known = recognised(core.table.texts(session), ids.int(), core.ring.block_size)
    skipped = text.skipped.clone()
    skipped[: known.tokens] |= known.mask
    base = None if known.key is None else (known.key, known.tokens)
    return replace(text, skipped=skipped, key=next(core.table.text_keys), base=base)


def own_texts(core: Core, record: WindowRecord) -> list[RowText]:
    """The texts of a record that no `generate` has told, without what nobody said in them."""
    ids, none = record.tail("token_ids", record.held).cpu(), torch.zeros(0, dtype=torch.int64)
    ends = torch.isin(ids, ends_of(core.adapter.model))
    # What rows that ended early are filled with stands behind all that was said.
    filler = ends.flip(1).cummin(1).values.flip(1) if ends.any() else ends
    texts = []
    for row, padding in enumerate(record.padding):
        begins = max(record.start, padding)
        unsaid, told = filler[row, begins - record.start :].clone(), None
        gone = torch.zeros(begins - padding, dtype=torch.bool)
        if core.speech is not None:
            held = ids[row, begins - record.start :]
            unsaid |= ~core.speech.said(held, begins=begins == padding)
            told = core.speech.told(held, ~unsaid, core.vocabulary)
            told = None if told is None else torch.cat([gone, told])
        texts.append(RowText(torch.cat([gone, unsaid]), none, told=told))
    return texts
