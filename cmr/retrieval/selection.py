"""How many passages to take: as long as another one explains much that none explains yet."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.maxsim import spread
from cmr.kernels.reference.select import Rule, SearchColumns, shares_of, stamped_table
from cmr.retrieval.choice import Choice

CANDIDATES = 8
"""Best passages among which those to read are chosen."""


class Best(NamedTuple):
    """The best passages of each row, best first.

    Attributes:
        scores: `[batch, k]` float32, `-inf` where there is none.
        starts: `[batch, k]` int64, first slot of each, -1 where there is none.
        certainty: `[batch]` float32, how far the best one stands out.
    """

    scores: torch.Tensor
    starts: torch.Tensor
    certainty: torch.Tensor

    def only(self, keep: torch.Tensor) -> Best:
        """Those of `keep` `[batch, k]` bool; the others give way to none, where they stand."""
        keep = keep & (self.starts >= 0)
        return self._replace(
            starts=self.starts.masked_fill(~keep, -1),
            scores=self.scores.masked_fill(~keep, NEG_INF),
        )


def cover(
    values: torch.Tensor,
    shares: torch.Tensor,
    columns: SearchColumns,
    rule: Rule,
    found: Best,
    close: torch.Tensor,
    blocks: int,
    gain: float,
) -> Choice:
    """Take the best passage, then those down the list that add enough, or may be meant instead.

    What passages explain together is the mean of each query token's best value among them,
    weighted as in the score of one. A look-alike of the first passage matches the tokens that
    are matched already and adds little; a second fact that the question needs adds much.

    Args:
        values: `[batch, tokens, candidates]` float32, how well each candidate matches each token.
        shares: `[batch, tokens]` float32, each token's share of a score.
        columns: of the blocks.
        rule: as for the search that found the candidates.
        found: the candidates, best first.
        close: `[batch, candidates]` bool, which are taken whatever they add, as it is not certain
            enough that the first one is the one that was meant.
        blocks: passages taken at most, 1 or more.
        gain: a further passage is taken when it raises what is explained by at least so much of
            what the first one explains.

    Returns:
        The choice.

    Source: Carbonell and Goldstein (1998) for leaving out what says the same again.
    """
    there = found.starts >= 0
    order = torch.arange(there.shape[1], device=there.device)
    explained = values[..., 0]
    total = (shares * explained).sum(1)
    first, free = total, there & (order > 0)
    taken = [torch.where(there[:, 0], 0, -1)]
    for _ in range(min(blocks, there.shape[1]) - 1):
        together = (shares[..., None] * torch.maximum(values, explained[..., None])).sum(1)
        more = together - total[:, None]
        enough = free & ((more >= gain * first[:, None]) | close)
        best = enough.int().argmax(-1)  # the first of them
        some = enough.any(-1)
        taken.append(torch.where(some, best, -1))
        picked = values.gather(2, best[:, None, None].expand(-1, values.shape[1], 1))[..., 0]
        explained = torch.where(some[:, None], torch.maximum(explained, picked), explained)
        total = (shares * explained).sum(1)
        free = free & (order > best[:, None]) & some[:, None]
    where = torch.stack(taken, 1)
    starts = found.starts.gather(1, where.clamp(min=0)).masked_fill(where < 0, -1)
    scores = found.scores.gather(1, where.clamp(min=0)).masked_fill(where < 0, NEG_INF)
    return Choice(*stamped_table(starts, columns, rule), scores, found.certainty)


def near(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    successor: torch.Tensor,
    found: Best,
    least: float,
) -> Best:
    """The candidates of which a token has at least that cosine with a token that asks.

    Args:
        maxima: `[batch, tokens, blocks]` float32 cosines.
        query_mask: `[batch, tokens]` bool, None: all ask.
        successor: `[blocks]` int64.
        found: the candidates.
        least: in [-1, 1].
    """
    if not maxima.shape[2]:
        return found
    if query_mask is not None:
        maxima = maxima.masked_fill(~query_mask[..., None], NEG_INF)
    best = maxima.amax(1)
    at = found.starts.clamp(min=0)
    after = successor[at]
    beside = best.gather(1, after.clamp(min=0)).masked_fill(after < 0, NEG_INF)
    fits = (torch.maximum(best.gather(1, at), beside) >= least) & (found.starts >= 0)
    order = (~fits).long().argsort(dim=1, stable=True)  # those that fit, in the order they had
    moved = Best(found.scores.gather(1, order), found.starts.gather(1, order), found.certainty)
    return moved.only(fits.gather(1, order))


def values_of(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    successor: torch.Tensor,
    visible: torch.Tensor,
    rule: Rule,
    starts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How well candidates match each token, and each token's share of a score, for `cover`.

    Args:
        maxima: `[batch, tokens, blocks]` float32.
        query_mask: `[batch, tokens]` bool, None: all ask.
        successor: `[blocks]` int64.
        visible: `[batch, blocks]` bool, the blocks that each row sees.
        rule: as for the search that found the candidates.
        starts: `[batch, candidates]` int64, -1 for none.

    Returns:
        `[batch, tokens, candidates]` and `[batch, tokens]` float32.
    """
    batch, tokens, size = maxima.shape
    if not size:
        return maxima.new_zeros(batch, tokens, starts.shape[1]), maxima.new_zeros(batch, tokens)
    usable, mean, deviation = spread(maxima, visible)

    def standard(values: torch.Tensor) -> torch.Tensor:
        z = torch.where(deviation > 0, (values - mean) / deviation, 0.0)
        return torch.where(values.isfinite(), z.clamp(-rule.clamp, rule.clamp), -rule.clamp)

    at = starts.clamp(min=0)
    after = successor[at]
    values = standard(maxima.gather(2, at[:, None].expand(-1, tokens, -1)))
    if rule.passage == 2:
        beside = standard(maxima.gather(2, after.clamp(min=0)[:, None].expand(-1, tokens, -1)))
        values = torch.maximum(values, torch.where(after[:, None] >= 0, beside, -rule.clamp))
    peaks = standard(maxima.masked_fill(~usable, NEG_INF).amax(-1, keepdim=True))[..., 0]
    return values, shares_of(peaks, visible.sum(-1), query_mask, rule.peak_power)[0]
