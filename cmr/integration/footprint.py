"""What a memory takes, tier by tier, before any of it is made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from cmr.integration.layout import COLUMN_BYTES, Layout

DISK = "on the disk"
LEDGER_BYTES = 96
"""Bytes of host memory that a block's slot takes in the ledger, its lists included."""


@dataclass(frozen=True)
class TierFootprint:
    """Bytes of one tier.

    Attributes:
        name: `recent`, `working` or `long_term`.
        blocks: that it has room for.
        states: bytes of keys and values, or hidden states, by where they lie: a device's name, or
            `DISK`.
        index: bytes of what is searched, in the same way.
        columns: bytes of token ids, positions and the like, which lie beside the model.
        ledger: bytes of host memory for the list of who has which slot; `Memory.nbytes` counts
            tensors alone, and not these.
    """

    name: str
    blocks: int
    states: Counter[str]
    index: Counter[str]
    columns: Counter[str]
    ledger: int

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, as `Memory.stats` has them for the tier."""
        return self.states.total() + self.index.total() + self.columns.total()

    @property
    def places(self) -> Counter[str]:
        """Bytes by where they lie, the ledger's with them."""
        return self.states + self.index + self.columns + Counter(cpu=self.ledger)


def footprint(layout: Layout, block: int, device: torch.device) -> list[TierFootprint]:
    """What each tier takes, those without a block left out.

    Args:
        layout: of the memory.
        block: tokens in a block.
        device: where the index lies.
    """
    lower, found = layout.lower, []
    sizes = {"recent": layout.recent, "working": lower.working, "long_term": lower.long_term}
    for name, blocks in sizes.items():
        if not blocks:
            continue
        states, saved = Counter[str](), name == "long_term"
        for shape in layout.shapes.values():
            where = {"recent": str(shape.device), "working": "cpu"}.get(name, DISK)
            kept = not saved or lower.long_term_states
            states[where] += blocks * block * shape.token_bytes() * kept
        # In a file a number of the index has one byte, and each token a float32 scale.
        each = layout.width + 4 if saved else layout.width * layout.index_dtype.itemsize
        index = Counter({DISK if saved else str(device): blocks * block * each})
        columns = Counter({str(device): blocks * (COLUMN_BYTES + block * 2 * 8)})
        found.append(TierFootprint(name, blocks, states, index, columns, blocks * LEDGER_BYTES))
    return found
