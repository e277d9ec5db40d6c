"""A memory as content that can be saved, while it goes on being used."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cmr.integration.core import Core
from cmr.integration.decoder.fingerprint import adapters
from cmr.memory.store import Kind, Part
from cmr.memory.store.form import DTYPE_NAMES

FULL, CODES = 0, 1
"""Kinds of blocks: as the upper tiers hold them, and as the last one does."""


class MemoryContent:
    """The blocks of some sessions as they are when this is made, as `cmr.memory.store` saves them.

    A context manager: it is made and entered while `core.lock` is held. From then on the store may
    change: rows are given under the lock, those of one part at a time, and a block that is about to
    leave its slot is copied aside first, as far as its rows were not given yet. Blocks whose time
    is over by then are not: their rows are zeros, and `due` tells them. Ephemeral sessions are left
    out.

    Args:
        core: the memory's store and settings.
        sessions: numbers of the sessions wanted; None: all.
        about: what the header says of model and tokenizer.
    """

    def __init__(self, core: Core, sessions: Sequence[int] | None, about: dict[str, Any]) -> None:
        self._core, self._ring = core, core.ring
        infos = [
            info
            for info in core.table.infos()
            if not info.ephemeral and (sessions is None or info.number in sessions)
        ]
        ledger = self._ring.ledger
        wanted = torch.tensor([info.number for info in infos], dtype=torch.int64)
        slots = ledger.slots_of(None)
        self.slots = slots[torch.isin(ledger.owner[slots], wanted)]
        self.kinds = kinds_of(self._ring)
        self.kind = torch.zeros(len(self.slots), dtype=torch.int64)
        for number, tier in enumerate(ledger.tiers):
            if "codes" in self._ring.parts(number):
                self.kind[tier.holds(self.slots)] = CODES
        self.numbers = ledger.number[self.slots]
        self.session = ledger.owner[self.slots]
        self.columns = self._columns()
        weights = adapters(core.adapter.model, {n for i in infos for n in i.adapters or ()})
        self._deadline = ledger.deadline[self.slots]
        # The position of the block that each slot still holds of these, -1 for none.
        self._place = torch.full((ledger.slots,), -1)
        self._place[self.slots] = torch.arange(len(self.slots))
        self._given = {
            part: torch.zeros(len(self.slots), dtype=torch.bool)
            for kind in self.kinds
            for part in kind.parts
        }
        self._aside: dict[tuple[str, int], torch.Tensor] = {}
        self.header = {
            **about,
            "config": core.config.to_dict(),
            "store": core.layout.store,
            "index_layer": core.layout.index_layer,
            "index": core.index_digest,
            "calibrated": core.calibration is not None,
            "clock": self._ring.clock,
            "limit": ledger.limit,
            "tiers": [[tier.name, tier.slots] for tier in ledger.tiers],
            "sessions": [
                {"name": i.name, "number": i.number, "position": i.position, "ttl": i.ttl}
                | ({"adapters": {name: weights[name] for name in i.adapters}} if i.adapters else {})
                for i in infos
            ],
            "scorer": {
                name: [DTYPE_NAMES[t.dtype], list(t.shape), t.flatten().tolist()]
                for name, t in core.scorer.state().items()
            },
        }

    def __enter__(self) -> MemoryContent:
        self._ring.on_change = self._set_aside
        return self

    def __exit__(self, *_: object) -> None:
        with self._core.lock:
            self._ring.on_change = None
            self._aside.clear()

    def due(self) -> torch.Tensor:
        """Which blocks' time is over by now, `[n]` bool."""
        return self._deadline <= time.time()

    def _columns(self) -> Mapping[str, torch.Tensor]:
        ring, ledger, slots = self._ring, self._ring.ledger, self.slots
        at = slots.to(ring.device)
        before = ring.predecessor[at].cpu()
        tier = torch.zeros(len(slots), dtype=torch.int64)
        for number, held in enumerate(ledger.tiers):
            tier[held.holds(slots)] = number
        return {
            "slot": slots,
            "tier": tier,
            "before": torch.where(before >= 0, ledger.number[before.clamp(min=0)], -1),
            "token_ids": ring.token_ids[at].to(torch.int32).cpu(),
            "positions": ring.positions[at].cpu(),
            "last_access": ring.last_access[at].cpu(),
            "access_count": ring.access_count[at].cpu(),
            "relevance": ring.relevance[at].cpu(),
            "time": ledger.born[slots],
            "deadline": ledger.deadline[slots],
            "flags": ledger.pinned[slots].to(torch.int64),
        }

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        """One part of blocks at positions `at`, `[k, ...]` on the CPU; asked for once."""
        slots = self.slots[at]
        wanted = self.kinds[kind].parts[part]
        out = torch.zeros((len(at), *wanted.shape), dtype=wanted.dtype)
        with self._core.lock:
            there = self._place[slots] == at
            for number, tier in enumerate(self._ring.ledger.tiers):
                here = tier.holds(slots) & there
                if here.any():
                    held = self._ring.parts(number)[part]
                    out[here] = held[(slots[here] - tier.first).to(held.device)].cpu()
            self._given[part][at] = True
        for i in (~there).nonzero()[:, 0].tolist():
            kept = self._aside.pop((part, int(at[i])), None)
            if kept is not None:
                out[i] = kept
        return out

    def _set_aside(self, slots: torch.Tensor) -> None:
        """Copy what was not given yet of the blocks that are about to leave these slots."""
        at = self._place[slots]
        at = at[at >= 0]
        self._place[self.slots[at]] = -1
        at = at[~self.due()[at]]
        for number, tier in enumerate(self._ring.ledger.tiers):
            here = at[tier.holds(self.slots[at])]
            for part, held in self._ring.parts(number).items() if len(here) else ():
                left = here[~self._given[part][here]]
                rows = held[(self.slots[left] - tier.first).to(held.device)].cpu()
                self._aside.update(zip(((part, n) for n in left.tolist()), rows, strict=True))


def kinds_of(ring: Any) -> Sequence[Kind]:
    """The forms in which a store keeps blocks."""
    forms = [Kind("full", {})] * 2
    for number in range(len(ring.ledger.tiers)):
        parts = {n: Part(t.dtype, tuple(t.shape[1:])) for n, t in ring.parts(number).items()}
        if "codes" in parts:
            forms[CODES] = Kind("codes", parts)
        elif number == 0:
            forms[FULL] = Kind("full", parts)
    return forms if forms[CODES].name == "codes" else forms[:1]
