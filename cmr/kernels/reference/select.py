"""From kept block maxima to the blocks that are read: standardise, weigh, choose, follow links."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.standardise import standardised

LOW_BITS = 0xFFFFFFFF
GROUP = 32
"""Neighbouring slots that a first look takes together."""
LONG_ROW, MANY_SCORES = 1 << 15, 1 << 21
"""In shorter rows, and fewer scores in all, a look at all costs less than one at groups first."""


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
        values: [B, Q, k] float32, how well each passage matches each query token, in deviations
            from what is usual; of no passage they mean nothing.
        shares: [B, Q] float32, of each query token in a similarity; 0 in a row that asks nothing.
    """

    scores: torch.Tensor
    starts: torch.Tensor
    certainty: torch.Tensor
    table: torch.Tensor
    stamps: torch.Tensor
    values: torch.Tensor
    shares: torch.Tensor


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
    line, shares, z = similarity_line(maxima, query_mask, columns.successor, visible, rule)
    scores, starts = topk_lowest_slot(at_peaks(line, line, columns), k)
    certainty = certainty_of(line, visible.sum(-1), rule)
    # A passage that matches less than the usual one does says nothing: its score is below 0.
    keep = (scores >= 0) & (certainty >= rule.threshold)[:, None] & (starts >= 0)
    starts = torch.where(keep, starts, -1)
    scores = torch.where(keep, scores, NEG_INF)
    if z.shape[2]:
        values = z.gather(2, starts.clamp(min=0)[:, None].expand(-1, z.shape[1], -1))
    else:
        values, shares = z.new_zeros(*shares.shape, k), torch.zeros_like(shares)
    table = stamped_table(starts, columns, rule)
    return Selection(scores, starts, certainty, *table, values, shares)


def may_see(
    columns: SearchColumns, sessions: torch.Tensor, before: torch.Tensor | None
) -> torch.Tensor:
    """The blocks `[B, N]` bool that each row may find: its own session's, in front of `before`."""
    # A row without a session has the number that empty slots have: it may see nothing.
    visible = columns.session == F.threshold(sessions, -1, -2)[:, None]
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
    z = standardised(maxima, visible, successor if rule.passage == 2 else None, rule.clamp)
    peaks = z.amax(-1) if z.shape[-1] else z.new_zeros(z.shape[:2])
    shares, asks = shares_of(peaks, query_mask, rule.peak_power)
    line = torch.bmm(shares[:, None], z)[:, 0]
    return line.masked_fill(~(visible & asks), NEG_INF), shares, z


def shares_of(
    peaks: torch.Tensor, query_mask: torch.Tensor | None, power: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each query token's share [B, Q] of the mean, and whether the row asks at all [B, 1].

    A token weighs a power of its peak [B, Q], its best standardised value.
    """
    weights = peaks.clamp(min=0) ** power
    # Of a single block, or several that are the same, none stands out: they fit equally well.
    weights = torch.where(peaks == 0, 1.0, weights)
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
    return table, stamped(table, columns.created)


def stamped(table: torch.Tensor, created: torch.Tensor) -> torch.Tensor:
    """The stamps of a table of slots, by the numbers of the blocks [N] that are there now."""
    return torch.where(table >= 0, _at(created, table), -1)


def certainty_of(line: torch.Tensor, stored: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Best similarity [B] of a line [B, N] over what is expected when nothing fits; 0 for nothing.

    `stored` [B] are the blocks that a row sees, by which that expectation grows.
    """
    best = line.amax(-1) if line.shape[1] else line.new_full((len(line),), NEG_INF)
    null = rule.null_base + rule.null_slope * stored.clamp(min=1).log()
    # Among few blocks some block always stands out, which says nothing of how well it fits.
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
    table = block_runs(starts, successor, predecessor, length=length, neighbours=neighbours)
    flat = table.flatten(1)
    # Passages may overlap: a slot that an earlier one has is left out, or it would be read twice.
    same = (flat[:, :, None] == flat[:, None, :]) & (flat[:, :, None] >= 0)
    earlier = torch.ones_like(same[0]).tril(-1)
    return flat.masked_fill((same & earlier).any(-1), -1).view(table.shape)


def block_runs(
    starts: torch.Tensor,
    successor: torch.Tensor,
    predecessor: torch.Tensor,
    *,
    length: int,
    neighbours: int,
) -> torch.Tensor:
    """The same as `block_table`, each passage whole, whatever the others have."""
    # Neighbours are found by links, not by counting: slots next to each other hold any texts.
    run = [starts]
    for _ in range(neighbours):
        run.insert(0, _follow(predecessor, run[0]))
    for _ in range(length - 1 + neighbours):
        run.append(_follow(successor, run[-1]))
    return torch.stack(run, -1)


def _follow(links: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return torch.where(slots >= 0, _at(links, slots), -1)


def _at(column: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The column at the slots; 0 where there are no slots at all."""
    return column[slots.clamp(min=0)] if len(column) else torch.zeros_like(slots)


# -- top-k, where of equal scores the lowest slot wins whatever the order of the reduction ---------


def pack(scores: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
    """Scores [..., N] float32 with their slots, as int64 that sort like (score, -slot).

    The upper half holds the score's bits in an order-preserving form, the lower half the slot's
    complement. NaN becomes -inf, -0 becomes 0. `slots`: [..., N] int64; None: 0 to N - 1.
    """
    inf = float("inf")
    clean = scores.nan_to_num(nan=-inf, posinf=inf, neginf=-inf).add_(0.0)
    # The bits of positive floats rise with them, those of negative ones fall: turning all but the
    # sign round makes integers of the same order.
    bits = clean.view(torch.int32)
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits).to(torch.int64)
    if slots is None:
        slots = torch.arange(scores.shape[-1], device=scores.device)
    return torch.add(LOW_BITS - slots, ordered, alpha=1 << 32)


def unpack_scores(packed: torch.Tensor) -> torch.Tensor:
    """The scores of packed int64, float32."""
    ordered = (packed >> 32).to(torch.int32)
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)


def topk_lowest_slot(
    scores: torch.Tensor, k: int, many_ties: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest scores of each row, in falling order, ties by rising slot.

    Args:
        scores: [B, N] float32; -inf and NaN are never chosen. N below 2**31.
        k: at least 1; may exceed N.
        many_ties: the scores were rounded to a low precision; only the speed depends on it.

    Returns:
        scores [B, k] float32 and slots [B, k] int64; -inf and -1 where fewer can be chosen.

    Raises:
        ValueError: k below 1.
    """
    _check(k)
    count = scores.shape[1]
    # The other ways look at values to decide, for which a GPU's host would have to wait.
    if scores.device.type != "cpu" or count <= k:
        return topk_of(scores, None, k)
    worth_groups = count >= LONG_ROW or scores.numel() >= MANY_SCORES
    if worth_groups and count >= 2 * GROUP * k:
        return _topk_by_groups(scores, k, many_ties)
    return _topk_plainly(scores, None, k, many_ties)


def topk_of(
    scores: torch.Tensor, slots: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk_lowest_slot` of scores [B, C] whose slots [B, C] are given, each at most once a row."""
    _check(k)
    batch, count = scores.shape
    taken = min(k, count)
    if not taken:
        best = torch.full((batch, k), NEG_INF, dtype=torch.float32, device=scores.device)
        return best, torch.full((batch, k), -1, dtype=torch.int64, device=scores.device)
    packed = pack(scores, slots).topk(taken, dim=-1).values
    values = unpack_scores(packed)
    chosen = LOW_BITS - (packed & LOW_BITS)
    chosen = chosen.masked_fill_(values == NEG_INF, -1)
    if taken == k:
        return values, chosen
    room = (0, k - taken)
    return F.pad(values, room, value=NEG_INF), F.pad(chosen, room, value=-1)


def _topk_plainly(
    scores: torch.Tensor, slots: torch.Tensor | None, k: int, many_ties: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by PyTorch's top-k, which breaks ties anyhow: those are looked at once more."""
    if not many_ties:
        values, chosen = scores.topk(k + 1)
        if bool((values[:, :-1] > values[:, 1:]).all()):  # no tie, no NaN, no -inf among the k
            chosen = chosen[:, :k]
            return values[:, :k], chosen if slots is None else slots.gather(1, chosen)
    # Some more than k, so that a tie at the k-th place is seen whole.
    wide = min(scores.shape[1], 3 * k + 16)
    values, chosen = scores.topk(wide)
    last = values[:, -1:]
    within = (last < values[:, k - 1 : k]) | (last == NEG_INF)
    if not bool((within & (values[:, :1] == values[:, :1])).all()):  # cut within a tie, or a NaN
        return topk_of(scores, slots, k)
    return topk_of(values, chosen if slots is None else slots.gather(1, chosen), k)


def _topk_by_groups(
    scores: torch.Tensor, k: int, many_ties: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, looking closely only at the k groups of slots with the highest maxima.

    A slot of any other group has k slots before it: one of each of those groups, with a higher
    score or with the same one and a lower slot. So nothing is lost, ties included.
    """
    count = scores.shape[1]
    whole = count // GROUP * GROUP
    maxima = scores[:, :whole].unflatten(-1, (-1, GROUP)).amax(-1)
    if whole < count:
        maxima = torch.cat([maxima, scores[:, whole:].amax(-1, keepdim=True)], 1)
    if bool(maxima.isnan().any()):  # a NaN would hide its group
        return topk_of(scores, None, k)
    if maxima.shape[1] > k:
        groups = _topk_plainly(maxima, None, k, many_ties)[1]
    else:
        groups = topk_of(maxima, None, k)[1]
    slots = (groups.unsqueeze(-1) * GROUP + torch.arange(GROUP)).flatten(1)
    near = scores.gather(1, slots.clamp(0, count - 1))
    if whole < count or bool((groups < 0).any()):
        near.masked_fill_((slots < 0) | (slots >= count), NEG_INF)
    return _topk_plainly(near, slots, k, many_ties)


def _check(k: int) -> None:
    if k < 1:
        raise ValueError(f"k: an integer of at least 1 expected, got {k}")
