"""What a memory stores at one moment, given part by part to whoever saves it."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from cmr.integration.core import Core
from cmr.integration.decoder import fingerprint
from cmr.integration.files.settings import to_header
from cmr.integration.files.texts import to_header as texts_to_header
from cmr.memory.store.form import DTYPE_NAMES


class MemoryContent:
    """The blocks of some sessions as they are when this is made, as `cmr.memory.store` saves them.

    A context manager: it is made and entered while `core.lock` is held. From then on the store may
    change: rows are given under the lock, those of one part at a time, and a block that is about to
    leave its slot is copied aside first, as far as its rows were not given yet. Blocks whose time
    is over by then are not: their rows are zeros, and `due` tells them. Ephemeral sessions are left
    out. `about` is what the header says of model and tokenizer.

    Attributes:
        uids: ids of the sessions in it.
    """

    def __init__(self, core: Core, sessions: Sequence[int] | None, about: dict[str, Any]) -> None:
        self._core, self._blocks = core, core.ring
        infos = [
            info
            for info in core.table.infos()
            if not info.ephemeral and (sessions is None or info.number in sessions)
        ]
        ledger = self._blocks.ledger
        wanted = torch.tensor([info.number for info in infos], dtype=torch.int64)
        slots = ledger.slots_of(None)
        self.slots = slots[torch.isin(ledger.owner[slots], wanted)]
        self.kinds = self._blocks.kinds
        self.columns = self._blocks.about(self.slots)
        self.kind = torch.tensor(self._blocks.kind_of_tier)[self.columns["tier"]]
        self.numbers = ledger.number[self.slots]
        self.session = ledger.owner[self.slots]
        self._deadline = self.columns["deadline"]
        self.uids = frozenset(uid for info in infos for uid in info.uids)
        used = {name for info in infos for name in info.adapters or ()}
        weights = fingerprint.adapters(core.adapter.model, used) if used else {}
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
            "config": to_header(core.config),
            "store": core.layout.store,
            "index_layer": core.layout.index_layer,
            "index": core.index_digest,
            "calibrated": core.calibration is not None,
            "clock": self._blocks.clock,
            "limit": ledger.limit,
            "tiers": [[tier.name, tier.slots] for tier in ledger.tiers],
            "sessions": [
                {
                    "name": i.name,
                    "number": i.number,
                    "position": i.position,
                    "ttl": i.ttl,
                    "uids": list(i.uids),
                    # The block that its next one follows, 0 where that is no longer stored.
                    "last": ledger.last_number(i.number),
                    "adapters": {name: weights[name] for name in i.adapters or ()},
                    "texts": texts_to_header(core.table.texts(i.number)),
                }
                for i in infos
            ],
            "scorer": {
                name: [DTYPE_NAMES[t.dtype], list(t.shape), t.flatten().tolist()]
                for name, t in core.scorer.state().items()
            },
        }

    def __enter__(self) -> MemoryContent:
        # Weakly: where the save was interrupted so that nobody comes by `__exit__`, what is stored
        # must not be copied aside for ever.
        here, blocks = weakref.ref(self), self._blocks

        def set_aside(slots: torch.Tensor) -> None:
            content = here()
            if content is None:
                blocks.on_change = None
            else:
                content._set_aside(slots)

        blocks.on_change = set_aside
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Follow the store no longer, and let go of what was copied aside."""
        with self._core.lock:
            self._blocks.on_change = None
            self._aside.clear()

    @property
    def due_next(self) -> float:
        """When the first block's time is over, in seconds since the epoch; `inf`: never."""
        return float(self._deadline.min()) if len(self._deadline) else math.inf

    def due(self) -> torch.Tensor:
        """Which blocks' time is over by now, `[n]` bool."""
        return self._deadline <= time.time()

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        """One part of blocks at positions `at`, `[k, ...]` on the CPU; asked for once."""
        slots = self.slots[at]
        wanted = self.kinds[kind].parts[part]
        out = torch.zeros((len(at), *wanted.shape), dtype=wanted.dtype)
        with self._core.lock:
            # A slot may have another block by now: then the rows were set aside.
            there = self._place[slots] == at
            for number, tier in enumerate(self._blocks.ledger.tiers):
                here = tier.holds(slots) & there
                if here.any():
                    held = self._blocks.parts[number][part]
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
        # What expires is not copied: it must not come back by the save.
        at = at[~self.due()[at]]
        for number, tier in enumerate(self._blocks.ledger.tiers):
            here = at[tier.holds(self.slots[at])]
            for part, held in self._blocks.parts[number].items() if len(here) else ():
                left = here[~self._given[part][here]]
                rows = held[(self.slots[left] - tier.first).to(held.device)].cpu()
                self._aside.update(zip(((part, n) for n in left.tolist()), rows, strict=True))
