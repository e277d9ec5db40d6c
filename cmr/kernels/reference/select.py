"""From kept block maxima to the blocks that are read: standardise, weigh, choose, follow links."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cmr.kernels.reference._topk import topk_lowest_slot
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.maxsim import passages, standardise


class Selection(NamedTuple):
    """The passages chosen for each row.

    Attributes:
        scores: [B, k] float32 in falling order, -inf where there is none.
        starts: [B, k] int64, first slot of each passage, -1 where there is none.
        certainty: [B] float32, best similarity over what is expected when nothing fits; 0 where
            a row has no passage at all.
        table: [B, k, run] int64, slots of each passage and its neighbours in the order of the
            text, run = neighbours + passage + neighbours; -1 where the text begins or ends or
            where an earlier passage has the slot already.
        stamps: [B, k, run] int64, `created` of those slots, -1 where there is none: a slot whose
            `created` differs later was overwritten meanwhile.
    """

    scores: torch.Tensor
    starts: torch.Tensor
    certainty: torch.Tensor
    table: torch.Tensor
    stamps: torch.Tensor


class SearchColumns(NamedTuple):
    """What a search reads of the columns of N stored blocks, all int64.

    Attributes:
        session: [N], whose block it is.
        positions: [N, block], of its tokens in the session's text; -1 where there is none.
        successor: [N], slot of the next block of the text, below N, or -1.
        predecessor: [N], of the one before.
        created: [N], the block's number.
    """

    session: torch.Tensor
    positions: torch.Tensor
    successor: torch.Tensor
    predecessor: torch.Tensor
    created: torch.Tensor


class Rule(NamedTuple):
    """The numbers of a search.

    Attributes:
        peak_power: of a query token's best value, which its weight is; 0 to 2.
        clamp: limit of standardised values, above 0.
        threshold: least certainty of a row that reads anything.
        null_base: the best similarity is null_base + null_slope * ln(blocks) when nothing fits.
        null_slope: see `null_base`.
        few_blocks: below so many visible blocks the certainty is `few_certainty`.
        few_certainty: see `few_blocks`.
        passage: blocks in one, 1 or 2.
        neighbours: blocks read beside a passage, on each side, 0 to 8.
    """

    peak_power: int
    clamp: float
    threshold: float
    null_base: float
    null_slope: float
    few_blocks: int
    few_certainty: float
    passage: int
    neighbours: int


def choose(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    columns: SearchColumns,
    sessions: torch.Tensor,
    before: torch.Tensor | None,
    rule: Rule,
    k: int,
) -> Selection:
    """The specification of `cmr.kernels.maxsim_select`, of arguments that were checked already."""
    visible = may_see(columns, sessions, before)
    line = similarity_line(maxima, query_mask, columns.successor, visible, rule)[0]
    scores, starts = topk_lowest_slot(at_peaks(line, line, columns), k)
    certainty = certainty_of(line, visible.sum(-1), rule)
    # A passage that matches less than the usual one does says nothing: its score is below 0.
    keep = (scores >= 0) & (certainty >= rule.threshold)[:, None] & (starts >= 0)
    starts = torch.where(keep, starts, -1)
    scores = torch.where(keep, scores, NEG_INF)
    return Selection(scores, starts, certainty, *stamped_table(starts, columns, rule))


def may_see(
    columns: SearchColumns, sessions: torch.Tensor, before: torch.Tensor | None
) -> torch.Tensor:
    """The blocks `[B, N]` bool that each row may find: its own session's, in front of `before`."""
    # A row without a session has the number that empty slots have: it may see nothing.
    visible = (columns.session == sessions[:, None]) & (sessions >= 0)[:, None]
    if before is not None:
        visible &= columns.positions.amax(-1) < before[:, None]
    return visible


def similarity_line(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    successor: torch.Tensor,
    visible: torch.Tensor,
    rule: Rule,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How well each passage fits the query, in deviations from what is usual.

    Args:
        maxima: [B, Q, N] float32 block maxima.
        query_mask: [B, Q] bool, False for padding; None for none.
        successor: [N] int64, the slot of the text's next block, or -1.
        visible: [B, N] bool.
        rule: `clamp`, `passage` and `peak_power` are used.

    Returns:
        The line [B, N] float32, -inf where a row does not see a block or does not ask; each query
        token's share [B, Q] of it; and the standardised values [B, Q, N] of the passages.
    """
    # What matches everything alike has no deviation and says nothing, whatever its cosines are.
    z = standardise(maxima, visible, rule.clamp)
    if rule.passage == 2:
        z = passages(z, successor)
    peaks = z.amax(-1) if z.shape[-1] else z.new_zeros(z.shape[:2])
    shares, asks = shares_of(peaks, visible.sum(-1), query_mask, rule.peak_power)
    line = torch.bmm(shares[:, None], z)[:, 0]
    return line.masked_fill(~(visible & asks), NEG_INF), shares, z


def shares_of(
    peaks: torch.Tensor, counts: torch.Tensor, query_mask: torch.Tensor | None, power: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each query token's share [B, Q] of the mean, and whether the row asks at all [B, 1].

    A token weighs a power of its peak [B, Q], its best standardised value; `counts` [B] are the
    blocks that a row sees.
    """
    weights = peaks.clamp(min=0) ** power
    # A single block stands out from nothing: it is chosen, as no other can be meant.
    weights = torch.where((counts < 2)[:, None], 1.0, weights)
    if query_mask is not None:
        weights = weights * query_mask
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, 0.0), total > 0


def at_peaks(line: torch.Tensor, base: torch.Tensor, columns: SearchColumns) -> torch.Tensor:
    """`base` [B, N], what passages are ranked by, at the local maxima of a line along the text.

    Elsewhere it is -inf; the line [B, N] is -inf where there is nothing to find.
    """
    successor, predecessor = columns.successor, columns.predecessor
    after = line[:, successor.clamp(min=0)].masked_fill(successor < 0, NEG_INF)
    before = line[:, predecessor.clamp(min=0)].masked_fill(predecessor < 0, NEG_INF)
    # Of level neighbours the first one of the text is the maximum, so that it is one of them.
    peaks = (line > NEG_INF) & (line >= after) & (line > before)
    return base.masked_fill(~peaks, NEG_INF)


def stamped_table(
    starts: torch.Tensor, columns: SearchColumns, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Table and stamps of a `Selection`, of the first slots [B, k] of its passages."""
    table = block_table(
        starts,
        columns.successor,
        columns.predecessor,
        length=rule.passage,
        neighbours=rule.neighbours,
    )
    return table, torch.where(table >= 0, _at(columns.created, table), -1)


def certainty_of(line: torch.Tensor, stored: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Best similarity [B] of a line [B, N] over what is expected when nothing fits; 0 for nothing.

    `stored` [B] are the blocks that a row sees, by which that expectation grows.
    """
    best = line.amax(-1) if line.shape[1] else line.new_full((len(line),), NEG_INF)
    null = rule.null_base + rule.null_slope * stored.clamp(min=1).log()
    sure = torch.where(stored < rule.few_blocks, rule.few_certainty, best / null)
    return torch.where(best > -math.inf, sure, 0.0)


def block_table(
    starts: torch.Tensor,
    successor: torch.Tensor,
    predecessor: torch.Tensor,
    *,
    length: int,
    neighbours: int,
) -> torch.Tensor:
    """Slots of each passage and its neighbours, each slot at most once a row.

    From first slots [B, k], -1 for none, along the links [N]:
    [B, k, neighbours + length + neighbours] int64 in the order of the text, see `Selection`.
    """
    run = [starts]
    for _ in range(neighbours):
        run.insert(0, _follow(predecessor, run[0]))
    for _ in range(length - 1 + neighbours):
        run.append(_follow(successor, run[-1]))
    table = torch.stack(run, -1)
    flat = table.flatten(1)
    # Passages may overlap: a slot that an earlier one has is left out, or it would be read twice.
    same = (flat[:, :, None] == flat[:, None, :]) & (flat[:, :, None] >= 0)
    earlier = torch.ones_like(same[0]).tril(-1)
    return flat.masked_fill((same & earlier).any(-1), -1).view(table.shape)


def _follow(links: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return torch.where(slots >= 0, _at(links, slots), -1)


def _at(column: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The column at the slots; 0 where there are no slots at all."""
    return column[slots.clamp(min=0)] if len(column) else torch.zeros_like(slots)
