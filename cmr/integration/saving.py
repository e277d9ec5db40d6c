"""A memory as content that can be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cmr.integration.core import Core
from cmr.memory.store import Kind, Part
from cmr.memory.store.form import DTYPE_NAMES

FULL, CODES = 0, 1
"""Kinds of blocks: as the upper tiers hold them, and as the last one does."""


class MemoryContent:
    """The blocks of some sessions of an attached memory, as `cmr.memory.store` saves them.

    Ephemeral sessions are left out.

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
        self.header = {
            **about,
            "config": core.config.to_dict(),
            "store": core.store,
            "index_layer": core.index_layer,
            "index": core.index_digest,
            "calibrated": core.calibration is not None,
            "clock": self._ring.clock,
            "limit": ledger.limit,
            "tiers": [[tier.name, tier.slots] for tier in ledger.tiers],
            "sessions": [
                {"name": i.name, "number": i.number, "position": i.position, "ttl": i.ttl}
                for i in infos
            ],
            "scorer": {
                name: [DTYPE_NAMES[t.dtype], list(t.shape), t.flatten().tolist()]
                for name, t in core.scorer.state().items()
            },
        }

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
        """One part of blocks at positions `at`, `[k, ...]` on the CPU."""
        slots = self.slots[at]
        wanted = self.kinds[kind].parts[part]
        out = torch.empty((len(at), *wanted.shape), dtype=wanted.dtype)
        for number, tier in enumerate(self._ring.ledger.tiers):
            here = tier.holds(slots)
            if here.any():
                held = self._ring.parts(number)[part]
                out[here] = held[(slots[here] - tier.first).to(held.device)].cpu()
        return out


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
