"""Late interaction over blocks: which passages answer the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.kernels.reference.maxsim import block_maxima, maxsim_topk, passages, standardise
from cmr.memory.ring import RingBuffer
from cmr.retrieval.choice import Choice
from cmr.retrieval.table import block_table

PASSAGE = 2
"""Blocks that are scored together, so that no fact is cut by an edge."""


@dataclass(frozen=True)
class MaxSimRetriever:
    """Passages by MaxSim (Khattab and Zaharia 2020, ColBERT) on one layer's states."""

    blocks: int
    neighbours: int

    @classmethod
    def from_config(cls, config):
        return cls(config.blocks, config.neighbours)

    def bias(self, choice, reweave):
        fixed = reweave.bias
        return torch.full_like(choice.certainty, 2.0 if fixed is None else fixed)

    def search(
        self,
        query: torch.Tensor,
        query_mask: torch.Tensor | None,
        sessions: torch.Tensor,
        ring: RingBuffer,
    ) -> Choice:
        n = ring.high_water
        held = ring.session[:n]
        visible = held[None, :] == sessions[:, None]
        tokens = ring.positions[:n] >= 0
        query = torch.nn.functional.normalize(query.float(), dim=-1).to(ring.index.dtype)
        z = standardise(block_maxima(query, ring.index[:n], tokens), visible)
        z = passages(z, ring.successor[:n])
        weights = torch.ones(query.shape[:2]) if query_mask is None else query_mask.float()
        scores, starts = maxsim_topk(z, weights, visible, self.blocks)
        table = block_table(
            starts,
            ring.successor,
            ring.predecessor,
            length=PASSAGE,
            neighbours=self.neighbours,
        )
        return Choice(table, scores, scores[:, 0])
