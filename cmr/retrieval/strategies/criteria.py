"""Ranking by several criteria at once: relevance, similarity, recency, diversity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from cmr.config import CRITERIA
from cmr.config import checks as check
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import similarity_line
from cmr.retrieval.ask import Ask, Scored, Searched, visible
from cmr.retrieval.selection import Ranked, ranked, rule_for
from cmr.retrieval.strategies.semantic import SemanticMemoryMatcher

DEFAULT_WEIGHTS = {"relevance": 0.4, "similarity": 0.3, "recency": 0.2, "diversity": 0.1}
NEWER_PER_HALF = 0.25
"""Share of what a row may see that is newer than an entry whose recency is one half."""


class MultiCriteriaRanker:
    """Ranks by a weighted mean of four criteria, each a number in [0, 1].

    - similarity: place between the least and the largest similarity that the row may see, so that
      the best is 1 and the worst 0, whatever the scale; all are 1 where all are equal.
    - relevance: as it is stored.
    - recency: 2 ** (-newer / half_life), `newer` being how many newer ones the row may see: what
      others write changes nothing.
    - diversity: 1 less the largest cosine with one that was chosen before, at most 1. It is 1 for
      the first.

    Equal scores: the lower slot first. Weights are taken as they are given, divided by their sum.

    Args:
        weights: criterion (see `cmr.config.CRITERIA`) to its weight, at least 0, one above 0; or
            the items of such a mapping. A criterion that is not named weighs 0. None:
            `DEFAULT_WEIGHTS`.
        half_life: newer ones that halve the recency, above 0; None: a quarter of what the row may
            see, one at least.

    Attributes:
        weights: criterion to its weight; the four sum to 1.

    Raises:
        ConfigError: a weight or the half-life is not as above.

    Source: Carbonell and Goldstein (1998), maximal marginal relevance, for the diversity.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | Iterable[tuple[str, float]] | None = None,
        half_life: float | None = None,
    ) -> None:
        if weights is None:
            weights = DEFAULT_WEIGHTS
        given = dict(check.weights("criteria_weights", weights, CRITERIA))
        # Divided by the largest one first: a sum of large numbers overflows.
        largest = max(given.values())
        total = sum(weight / largest for weight in given.values())
        self.weights = {name: given.get(name, 0.0) / largest / total for name in CRITERIA}
        if half_life is not None:
            half_life = check.real("half_life", half_life, 0.0)
            if not half_life:
                raise check.refuse("half_life", half_life, "a number above 0")
        self.half_life = half_life

    def base(
        self,
        similarity: torch.Tensor,
        relevance: torch.Tensor,
        created: torch.Tensor,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        """The weighted sum of all criteria but diversity, `[batch, entries]` float32 in `[0, 1]`.

        Similarity, float32 of any scale, and `seen`, what each row may see, are of that shape, too;
        relevance in `[0, 1]` and `created`, larger for newer ones, are `[entries]`. What is not
        seen, or whose similarity is not finite, is `-inf`.
        """
        seen = seen & similarity.isfinite()
        weights = self.weights
        total = weights["similarity"] * _between(similarity, seen)
        total = total + weights["relevance"] * relevance
        if weights["recency"]:
            total = total + weights["recency"] * self._recency(created, seen)
        return total.masked_fill(~seen, NEG_INF)

    def rank(
        self,
        similarity: torch.Tensor,
        relevance: torch.Tensor,
        created: torch.Tensor,
        seen: torch.Tensor,
        k: int,
        profiles: torch.Tensor | None = None,
    ) -> Ranked:
        """The k best of each row; similarity, relevance, created and seen as for `base`.

        `profiles`, `[batch or 1, features, entries]` float32, say by their cosine how alike two
        entries are. They are needed where diversity has a weight: else a ValueError says so.
        """
        base = self.base(similarity, relevance, created, seen)
        weight = self.weights["diversity"]
        if weight and profiles is None:
            raise ValueError(f"profiles: a tensor expected for a diversity of {weight}, got None")
        return ranked(base, k, profiles if weight else None, weight)

    def _recency(self, created: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        # Ages are counted in what the row may see, not in blocks written: what other sessions write
        # must neither age a memory nor show in its scores.
        order = created.masked_fill(~seen, -1).argsort(dim=-1, descending=True)
        places = torch.arange(seen.shape[1], device=seen.device).expand_as(order)
        newer = torch.empty_like(order).scatter_(1, order, places)
        if self.half_life is not None:
            return torch.exp2(-newer / self.half_life)
        half = (NEWER_PER_HALF * seen.sum(-1, keepdim=True)).clamp(min=1.0)
        return torch.exp2(-newer / half)


@dataclass(frozen=True)
class MultiCriteria:
    """Passages, or single entries, by several criteria.

    Candidates are local maxima of the similarity, which also says how certain the search is: that
    of the semantic search, or for entries the matcher's, whose threshold holds. Two passages are
    alike where the same query tokens find them: a profile is what each token adds to the
    similarity, sqrt(share) * max(0, z). Two entries are as alike as the cosine of their states.

    Attributes:
        ranker: weighs the criteria.
        matcher: compares entries, each a block of one token; None: passages are ranked.
    """

    ranker: MultiCriteriaRanker = field(default_factory=MultiCriteriaRanker)
    matcher: SemanticMemoryMatcher | None = None

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in [0, 1] of all but diversity, and what diversity needs; see `Strategy`."""
        size, seen, maxima = store.high_water, visible(ask, store), ask.maxima(store)
        diversity, profiles = self.ranker.weights["diversity"], None
        if self.matcher is None:
            successor, rule = store.successor[:size], rule_for(ask.located)
            line, shares, z = similarity_line(maxima, ask.mask, successor, seen, rule)
            if diversity:
                profiles = shares.sqrt()[:, :, None] * z.clamp(min=0)
        else:
            line = self.matcher.of_maxima(maxima, ask.mask)
            if diversity:
                profiles = store.index[:size, 0].t()[None]
        base = self.ranker.base(line, store.relevance[:size], store.created[:size], seen)
        return Scored(base, line=line, profiles=profiles, diversity=diversity)


def _between(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Place of each value between the least and the largest seen of its row, in [0, 1]."""
    if not values.shape[1]:
        return values
    low = values.masked_fill(~seen, -NEG_INF).amin(-1, keepdim=True)
    span = values.masked_fill(~seen, NEG_INF).amax(-1, keepdim=True) - low
    return torch.where(seen, torch.where(span > 0, (values - low) / span, 1.0), 0.0)
