"""What is known of the forward under way."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from cmr.integration.recall import Recall
from cmr.integration.record import WindowRecord


@dataclass
class Step:
    """One forward of the decoder."""

    record: WindowRecord | None
    sessions: list[int]
    recall: Recall | None
    position_ids: torch.Tensor
    query_mask: torch.Tensor | None
    token_ids: torch.Tensor
    index: torch.Tensor | None = None
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    leaving: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    turns: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    gates: dict[int, torch.Tensor] = field(default_factory=dict)
