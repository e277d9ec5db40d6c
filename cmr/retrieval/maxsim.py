"""Late interaction over blocks: which passages answer the newest tokens, and how surely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cmr.config import RetrievalConfig
from cmr.kernels.maxsim import Columns, Rule, Selection, maxsim_select
from cmr.memory.ring import RingBuffer
from cmr.retrieval.choice import Choice
from cmr.retrieval.query import RollingQuery

TUNED = Rule(
    criteria=(1.0, 0.0, 0.0, 0.0),
    half_life=1.0,
    # A query token weighs the square of its best standardised match: template words match
    # everywhere alike and weigh little, a name that one passage holds weighs most.
    peak_power=2,
    clamp=8.0,
    ratio=0.0,
    threshold=0.0,
    # Score of the best passage when nothing fits: base + slope * ln(blocks), fitted to questions
    # about other documents at 2 to 500 stored blocks (docs/how-it-works.md).
    null_base=0.70,
    null_slope=0.18,
    # Below so many blocks a best score says nothing about how well it fits: a middling certainty.
    few_blocks=12,
    few_certainty=1.0,
    # Blocks that are scored together, so that no fact is cut by an edge.
    passage=2,
    neighbours=0,
)
"""What the search was tuned to; a configuration sets the rest."""


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
        unit = F.normalize(query.float(), dim=-1).to(ring.index.dtype)
        maxima = ring.maxima(unit, sessions, 0, size)
        columns = _columns(ring, size)
        return _choice(
            maxsim_select(maxima, query_mask, columns, sessions, before, self._rule, self.blocks)
        )

    def search_again(self, query: RollingQuery, ring: RingBuffer) -> Choice:
        """Choose passages for a query that is up to date; its next search writes over the choice.

        Args:
            query: the newest tokens of a text.
            ring: the store that it compares them with.
        """
        maxima = query.maxima[:, :, : query.width]
        query.found = maxsim_select(
            maxima,
            query.mask,
            _columns(ring, query.width),
            query.sessions,
            None,
            self._rule,
            self.blocks,
            out=query.found,
            scratch=query.scratch,
        )
        return _choice(query.found)

    @property
    def _rule(self) -> Rule:
        return TUNED._replace(
            ratio=self.ratio, threshold=self.threshold, neighbours=self.neighbours
        )


def _columns(ring: RingBuffer, size: int) -> Columns:
    return Columns(
        ring.session[:size],
        ring.positions[:size],
        ring.successor[:size],
        ring.predecessor[:size],
        ring.relevance[:size],
        ring.created[:size],
        ring.cursor,
    )


def _choice(found: Selection) -> Choice:
    return Choice(found.table, found.stamps, found.scores, found.certainty)
