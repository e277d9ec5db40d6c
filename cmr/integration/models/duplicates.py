"""Entries of a buffer that say the same twice."""

from __future__ import annotations

import torch
from torch import nn

from cmr.memory.buffer.layered import LayeredMemoryBuffer

SAME = 0.999
"""Cosine from which on two states of a token are the same."""
ROWS = 1024
"""States that are compared at once."""


def drop_duplicates(buffer: LayeredMemoryBuffer, layers: tuple[int, ...]) -> int:
    """Keep the newest of entries of a sequence and layer with the same token and the same state.

    Returns:
        How many entries went.
    """
    gone = 0
    for layer in layers:
        with buffer.lock:
            store = buffer.layer(layer)
            if store is None or store.held < 2:
                continue
            slots = store.find()
            order = store.columns["created"][slots].argsort(descending=True)
            slots = slots[order]
            owner, token = (store.columns[name][slots] for name in ("sequence", "token_id"))
            states = nn.functional.normalize(store.states(slots).float(), dim=-1)
            again = torch.zeros(len(slots), dtype=torch.bool)
            for start in range(0, len(slots), ROWS):
                part = slice(start, start + ROWS)
                alike = (states[part] @ states.T >= SAME).cpu()
                alike &= (owner[part, None] == owner) & (token[part, None] == token)
                newer = torch.arange(len(slots)) < torch.arange(start, start + len(alike))[:, None]
                again[part] = (alike & newer).any(1)
            gone += buffer.drop(layer, slots[again]) if bool(again.any()) else 0
    return gone
