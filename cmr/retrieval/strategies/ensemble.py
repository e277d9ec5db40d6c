"""Several searches at once: the ranks that they give a passage are added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from cmr.config import checks as check
from cmr.kernels.reference.attention import NEG_INF
from cmr.retrieval.ask import Ask, Scored, Searched, Strategy, visible

RANK_CONSTANT = 60
"""Cormack's: how many places at the top are nearly worth the same."""
PARTS = ("semantic", "contextual", "lexical")
MEASURED_WEIGHTS = (("semantic", 1.0), ("contextual", 0.05), ("lexical", 0.05))
MEASURED_CONSTANT = 10
"""Over blocks: what the semantic search puts first is right most of the time. Any more weight on
the others, or on later places, finds less of what is asked for in other words."""


class HybridEnsemble:
    """Reciprocal rank fusion: `sum of weight / (rank_constant + rank)` over several strategies.

    A rank is 1 for the best of what the row may see; equal scores share the better rank. What a
    strategy says nothing about (its score is not finite, or that of everything is the same) gets
    nothing from it. Candidates are local maxima of the first strategy's line, which also says how
    certain the search is.

    Args:
        strategies: strategies and their weights, of at least 0, one above 0; the first one is the
            semantic search.
        rank_constant: above 0; the smaller, the more the first places count.

    Raises:
        ConfigError: there is no strategy, or a number is out of its range.

    Source: Cormack, Clarke and Buettcher (2009), reciprocal rank fusion.
    """

    def __init__(
        self,
        strategies: Sequence[tuple[Strategy, float]],
        rank_constant: float = RANK_CONSTANT,
    ) -> None:
        self.strategies = [
            (part, check.real(f"weight of {type(part).__name__}", weight, 0.0))
            for part, weight in strategies
        ]
        if not sum(weight for _, weight in self.strategies):
            raise check.refuse("strategies", strategies, "one with a weight above 0, at least")
        self.rank_constant = check.real("rank_constant", rank_constant, 0.0)
        if not self.rank_constant:
            raise check.refuse("rank_constant", rank_constant, "a number above 0")

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Sums of reciprocal ranks, as shares of the largest that there can be; see `Strategy`."""
        seen = visible(ask, store)
        total = torch.zeros(seen.shape, device=seen.device)
        line, certainty = total, None
        for number, (part, weight) in enumerate(self.strategies):
            found = part.score(ask, store)
            passages = found.passages.masked_fill(~seen, NEG_INF)
            total = total + weight * _reciprocal(passages, self.rank_constant)
            if not number:
                line, certainty = passages if found.line is None else found.line, found.certainty
        best = sum(weight for _, weight in self.strategies) / (self.rank_constant + 1)
        return Scored((total / best).masked_fill(~seen, NEG_INF), certainty, line)


def ensemble_of(
    parts: Mapping[str, Strategy],
    weights: Mapping[str, float] | Iterable[tuple[str, float]] | None,
    rank_constant: float = MEASURED_CONSTANT,
) -> HybridEnsemble:
    """The ensemble of a strategy for each of `PARTS`; one that is not named has no weight.

    Weights that are None are the `MEASURED_WEIGHTS`.
    """
    given = dict(MEASURED_WEIGHTS if weights is None else weights)
    # The first part says where candidates are, whether or not it has a weight.
    kept = [name for name in PARTS if name == PARTS[0] or given.get(name)]
    return HybridEnsemble([(parts[name], given.get(name, 0.0)) for name in kept], rank_constant)


def _reciprocal(scores: torch.Tensor, constant: float) -> torch.Tensor:
    """1 / (constant + rank) `[batch, blocks]` of scores; 0 where they say nothing."""
    if not scores.shape[1]:
        return scores
    says = scores.isfinite()
    falling = (-scores.masked_fill(~says, NEG_INF)).contiguous()
    # How many are better, and one: equal scores share the better rank.
    rank = 1 + torch.searchsorted(falling.sort(-1).values, falling)
    # A part that scores all alike says nothing, and must not lift them all by the best rank.
    least = scores.masked_fill(~says, -NEG_INF).amin(-1, keepdim=True)
    says &= (scores > least) | (scores.masked_fill(~says, NEG_INF).amax(-1, keepdim=True) > least)
    return torch.where(says, 1 / (constant + rank), 0.0)
