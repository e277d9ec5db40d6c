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
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    columns: Columns,
    visible: torch.Tensor,
    rule: Rule,
    found: Selection,
    blocks: int,
    gain: float,
) -> Choice:
    """Take the best passage, then the one that adds most, while it adds enough.

    What passages explain together is the mean of each query token's best value among them,
    weighted as in the score of one. A look-alike of the first passage matches the tokens that
    are matched already and adds little; a second fact that the question needs adds much.

    Args:
        maxima: `[batch, tokens, blocks]` float32.
        query_mask: `[batch, tokens]` bool, None: all ask.
        columns: of the blocks.
        visible: `[batch, blocks]` bool, the blocks that each row sees.
        rule: as for the search that found the candidates.
        found: the candidates, best first.
        blocks: passages taken at most, 1 or more.
        gain: a further passage is taken when it raises what is explained by at least so much of
            what the first one explains.

    Returns:
        The choice; its scores are what each passage added to those before.

    Source: greedy maximum coverage, Nemhauser, Wolsey and Fisher (1978).
    """
    values, shares = _values(maxima, query_mask, columns.successor, visible, rule, found.starts)
    there = found.starts >= 0
    explained = values[..., 0]
    total = (shares * explained).sum(1)
    taken, added = [torch.zeros_like(found.starts[:, 0])], [total]
    going = there[:, 0]
    order = torch.arange(there.shape[1], device=there.device)
    free = there & (order > 0)
    for _ in range(min(blocks, there.shape[1]) - 1):
        together = (shares[..., None] * torch.maximum(values, explained[..., None])).sum(1)
        more, best = (together - total[:, None]).masked_fill(~free, NEG_INF).max(-1)
        going = going & (more >= gain * added[0])
        taken.append(torch.where(going, best, -1))
        added.append(torch.where(going, more, NEG_INF))
        picked = best[:, None, None].expand(-1, values.shape[1], 1)
        explained = torch.maximum(explained, values.gather(2, picked)[..., 0])
        total = (shares * explained).sum(1)
        free = free & (order != best[:, None])
    where = torch.stack(taken, 1)
    starts = found.starts.gather(1, where.clamp(min=0)).masked_fill(where < 0, -1)
    scores = torch.stack(added, 1).masked_fill(starts < 0, NEG_INF)
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


def _values(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    successor: torch.Tensor,
    visible: torch.Tensor,
    rule: Rule,
    starts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised values `[batch, tokens, candidates]`, and each token's share of a score."""
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
