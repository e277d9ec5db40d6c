"""A block store whose keeper makes room for whatever a test writes."""

from __future__ import annotations

from typing import Any

import torch

from cmr.memory import BlockBatch, BlockStore, Keeper, Policy, SessionTable


class KeptStore(BlockStore):
    """A store with a keeper of its own; see both."""

    def __init__(
        self, *, policy: Policy | None = None, sessions: SessionTable | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.keeper = Keeper(self, policy, sessions)

    def write(self, batch: BlockBatch) -> torch.Tensor:
        return self.keeper.write(batch)
