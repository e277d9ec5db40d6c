"""How many passages to take: as long as another one explains much that none explains yet."""

from __future__ import annotations

import torch

from cmr.kernels.maxsim import Columns, Rule, Selection
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import block_table
from cmr.retrieval.choice import Choice

CANDIDATES = 8
"""Best passages among which those to read are chosen."""


def cover(
    values: torch.Tensor,
    shares: torch.Tensor,
    columns: Columns,
    rule: Rule,
    found: Selection,
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
    table = block_table(
        starts,
        columns.successor,
        columns.predecessor,
        length=rule.passage,
        neighbours=rule.neighbours,
    )
    held = table.clamp(min=0)
    stamps = torch.where(table >= 0, columns.created[held] if len(columns.created) else held, -1)
    return Choice(table, stamps, scores, found.certainty)


def near(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    successor: torch.Tensor,
    found: Selection,
    least: float,
) -> Selection:
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
    first = (~fits).long().argsort(dim=1, stable=True)  # those that fit, in the order they had
    fits, scores = fits.gather(1, first), found.scores.gather(1, first)
    return found._replace(
        starts=found.starts.gather(1, first).masked_fill(~fits, -1),
        scores=scores.masked_fill(~fits, NEG_INF),
    )


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
    usable = visible[:, None] & maxima.isfinite()
    count = usable.sum(-1, keepdim=True).clamp(min=1)
    kept = torch.where(usable, maxima, 0.0)
    mean = kept.sum(-1, keepdim=True) / count
    deviation = torch.where(usable, maxima - mean, 0.0).square().sum(-1, keepdim=True)
    deviation = (deviation / count).sqrt()
    flat = deviation <= 1e-6 * kept.abs().amax(-1, keepdim=True)

    def standard(values: torch.Tensor) -> torch.Tensor:
        z = torch.where(flat, 0.0, (values - mean) / deviation).clamp(-rule.clamp, rule.clamp)
        return torch.where(values.isfinite(), z, -rule.clamp)

    at = starts.clamp(min=0)
    after = successor[at]
    values = standard(maxima.gather(2, at[:, None].expand(-1, tokens, -1)))
    if rule.passage == 2:
        beside = standard(maxima.gather(2, after.clamp(min=0)[:, None].expand(-1, tokens, -1)))
        values = torch.maximum(values, torch.where(after[:, None] >= 0, beside, -rule.clamp))
    peaks = standard(maxima.masked_fill(~usable, NEG_INF).amax(-1, keepdim=True))[..., 0]
    weights = peaks.clamp(min=0) ** rule.peak_power
    weights = torch.where((visible.sum(-1) < 2)[:, None], 1.0, weights)
    if query_mask is not None:
        weights = weights * query_mask
    sums = weights.sum(-1, keepdim=True)
    return values, torch.where(sums > 0, weights / sums, 0.0)
