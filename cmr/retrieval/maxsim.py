"""Late interaction over blocks: which passages answer the newest tokens, and how surely."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cmr.config import RetrievalConfig
from cmr.kernels.reference.maxsim import block_maxima, maxsim_topk, passages, standardise
from cmr.memory.ring import RingBuffer
from cmr.retrieval.choice import Choice
from cmr.retrieval.table import block_table

PASSAGE = 2
"""Blocks that are scored together, so that no fact is cut by an edge."""
PEAK_POWER = 2
"""A query token weighs the square of its best standardised match: template words match
everywhere alike and weigh little, a name that one passage holds weighs most."""
NULL_BASE, NULL_SLOPE = 0.70, 0.18
"""Score of the best passage when nothing fits: `NULL_BASE + NULL_SLOPE * ln(blocks)`, fitted to
questions about other documents at 2 to 500 stored blocks (docs/how-it-works.md)."""
FEW_BLOCKS, FEW_CERTAINTY = 12, 1.0
"""Below so many blocks a best score says nothing about how well it fits: a middling certainty."""


@dataclass(frozen=True)
class MaxSimRetriever:
    """Passages by MaxSim (Khattab and Zaharia 2020, ColBERT) on one layer's states.

    Each query token's block maxima are standardised over the session's blocks, a passage takes the
    larger of its two blocks' values, and its score is the mean over the query's tokens, each
    weighted by the square of its best value.

    Attributes:
        blocks: passages chosen at most.
        neighbours: blocks read in addition on each side of a passage.
        ratio: a further passage is read when its score is at least so much of the best one's.
        threshold: certainty below which a row reads nothing.
    """

    blocks: int
    neighbours: int
    ratio: float
    threshold: float

    @classmethod
    def from_config(cls, config: RetrievalConfig) -> MaxSimRetriever:
        """The retriever of a configuration."""
        return cls(config.blocks, config.neighbours, config.ratio, config.threshold)

    def search(
        self,
        query: torch.Tensor,
        query_mask: torch.Tensor | None,
        sessions: torch.Tensor,
        ring: RingBuffer,
        before: torch.Tensor | None = None,
    ) -> Choice:
        """Choose passages for each row from its own session's blocks.

        Args:
            query: `[batch, tokens, hidden]` states at the index layer, any float dtype.
            query_mask: `[batch, tokens]` bool, False for padding; None for none.
            sessions: `[batch]` int64 session numbers; a number that owns nothing finds nothing.
            ring: the store.
            before: `[batch]` int64; blocks with a token at that position of their session's text
                or behind it are left out. None: none is.

        Returns:
            The choice. Its certainty is the best score over what is expected of the best passage
            when nothing fits (about 1 then, 1.3 to 2 for a question that a passage answers), and 0
            where the row has no passage. Rows below `threshold` read nothing.
        """
        size = ring.high_water
        visible = ring.session[:size] == sessions[:, None]
        if before is not None:
            visible &= ring.positions[:size].amax(-1) < before[:, None]
        successor = ring.successor[:size]
        unit = torch.nn.functional.normalize(query.float(), dim=-1).to(ring.index.dtype)
        maxima = block_maxima(unit, ring.index[:size], ring.positions[:size] >= 0)
        z = passages(standardise(maxima, visible), successor)
        weights = z.amax(-1).clamp(min=0) ** PEAK_POWER if size else z.new_zeros(query.shape[:2])
        # A single block stands out from nothing: it is chosen, as no other can be meant.
        weights = torch.where((visible.sum(-1) < 2)[:, None], 1.0, weights)
        if query_mask is not None:
            weights = weights * query_mask
        shares = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        line = torch.bmm(shares[:, None], z)[:, 0]
        peaks = visible & _local_maxima(line, successor, ring.predecessor[:size])
        scores, starts = maxsim_topk(z, weights, peaks, self.blocks)
        certainty = self._certainty(scores[:, 0], visible.sum(-1))
        keep = (scores >= self.ratio * scores[:, :1]) & (certainty >= self.threshold)[:, None]
        starts = torch.where(keep & (starts >= 0), starts, -1)
        table = block_table(
            starts,
            ring.successor,
            ring.predecessor,
            length=PASSAGE,
            neighbours=self.neighbours,
        )
        return Choice(table, torch.where(starts >= 0, scores, -math.inf), certainty)

    @staticmethod
    def _certainty(best: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """The best score over what is expected when nothing fits, see `Choice`."""
        null = NULL_BASE + NULL_SLOPE * stored.clamp(min=1).log()
        sure = torch.where(stored < FEW_BLOCKS, FEW_CERTAINTY, best / null)
        return torch.where(torch.isfinite(best), sure, torch.zeros_like(best))


def _local_maxima(
    line: torch.Tensor, successor: torch.Tensor, predecessor: torch.Tensor
) -> torch.Tensor:
    """Where `[batch, slots]` scores are not below their neighbours' in the text."""
    after = line[:, successor.clamp(min=0)].masked_fill(successor < 0, -math.inf)
    before = line[:, predecessor.clamp(min=0)].masked_fill(predecessor < 0, -math.inf)
    return (line >= after) & (line > before)
