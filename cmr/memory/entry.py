"""A stored block as people look at it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class MemoryEntry:
    """One stored block of one session.

    Attributes:
        hidden_state: `[tokens, hidden]`, a copy of the block's unit-norm states at the index
            layer.
        layer_idx: index into transformers' `hidden_states` of the state above.
        sequence_id: number of the session that owns the block.
        position_idx: position of the block's first token in its session's text.
        relevance_score: calibrated to [0, 1]; 0.5 where blocks are not scored.
        timestamp: number of the write that stored the block (a counter, not a clock).
        access_count: how often the block was recalled.
        last_access: number of the newest block when this one was last recalled, 0 for never.
        session: name of the session.
        token_ids: the block's token ids, without padding.
        slot: the block's slot in the store.
        tier: name of the tier that the slot is in.
    """

    hidden_state: torch.Tensor
    layer_idx: int
    sequence_id: int
    position_idx: int
    relevance_score: float
    timestamp: float
    access_count: int = 0
    last_access: float = 0.0
    session: str = ""
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    slot: int = -1
    tier: str = "recent"
