"""The reconstruction methods: what becomes of recalled tokens where only some may be read.

A row is planned for itself, on the CPU, once a search. Tokens come in the order of reading: passage
by passage, the best passage first, each in the order of its text.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from cmr.config import RECONSTRUCTION_METHODS
from cmr.config import checks as check
from cmr.reconstruction.limits import Limits
from cmr.reconstruction.read_plan import ReadPlan

CLAMP = 8.0
"""Standard deviations beyond which a match counts no further, as in the search for passages."""
ROUNDING = 1e-5
"""A deviation of cosines below this is that of their rounding: they are all the same."""
REACH = 16
"""Tokens on either side that a match counts for, less with every step (docs/how-it-works.md)."""

Slots = tuple[torch.Tensor, torch.Tensor]
"""`[n]`: for each recalled token the number of the read token that it goes into, -1 for none, and
its share there before shares are scaled to sum 1."""


def match(
    query: torch.Tensor, query_mask: torch.Tensor | None, memory: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """How far each memory token stands out to the tokens that ask.

    The cosines of a query token with all memory tokens of its row are standardised, so that a word
    that fits everywhere says nothing; a memory token's match is its best over the query.

    Query `[batch, tokens, hidden]` and memory `[batch, n, hidden]` have any float dtype and norm.
    Their masks (bool) are False for tokens that do not ask (None: all do), and where memory has no
    token and may be NaN. The match is `[batch, n]` float32 in standard deviations, within `CLAMP`;
    0 where there is no token, and everywhere in a row that does not ask.
    """
    unit, stored = F.normalize(query.float(), dim=-1), F.normalize(memory.float(), dim=-1)
    cosine = torch.bmm(unit, stored.transpose(1, 2))
    held, count = mask[:, None], mask.sum(-1)[:, None, None].clamp(min=1)
    # `where`, not a product: 0 times NaN is NaN.
    mean = torch.where(held, cosine, 0.0).sum(-1, keepdim=True) / count
    spread = torch.where(held, cosine - mean, 0.0)
    deviation = (spread.square().sum(-1, keepdim=True) / count).sqrt()
    z = torch.where(deviation > ROUNDING, spread / deviation, 0.0).clamp(-CLAMP, CLAMP)
    if query_mask is not None:
        z = z.masked_fill(~query_mask[..., None], -CLAMP)
    if not z.shape[1]:
        return mask.float() * 0.0
    best = z.amax(1)
    if query_mask is not None:
        best = torch.where(query_mask.any(1, keepdim=True), best, 0.0)
    return torch.where(mask, best, 0.0)


def plan_rows(
    method: str, matches: torch.Tensor, passages: torch.Tensor, mask: torch.Tensor, limits: Limits
) -> ReadPlan:
    """What is read of what was recalled, row by row; a row within its limits reads all as it is.

    `matches` `[batch, n]` are as `match` gives them, and `mask` is True where there is a token.
    `passages` `[n]` int64 number each token's passage, 0 the best one, in rising order.
    """
    check.choice("reconstruction_method", method, RECONSTRUCTION_METHODS)
    matches, passages, mask = matches.cpu(), passages.cpu(), mask.cpu()
    slots, shares = [], []
    for row in range(len(mask)):
        columns = mask[row].nonzero()[:, 0]
        # Each row has its own number of tokens, and so its own limit.
        most = limits.of(len(columns))
        if most == len(columns):
            slot, share = torch.arange(most), torch.ones(most)
        else:
            slot, share = _METHODS[method](matches[row, columns], passages[columns], most)
        slots.append(torch.full((mask.shape[1],), -1).index_copy_(0, columns, slot))
        shares.append(torch.zeros(mask.shape[1]).index_copy_(0, columns, share))
    return ReadPlan.of(slots, shares)


# Each method is given the matches of a row's `n` tokens, their passages, and how many to read, 1 to
# n - 1.


def chosen(matches: torch.Tensor, passages: torch.Tensor, most: int) -> Slots:
    """The tokens that match best together with what stands around them, as they are."""
    # A match counts for its neighbours too, so that whole runs are chosen: a name is of no use
    # without what is said of it (SnapKV pools its choice for the same reason; Li et al. 2024).
    value = smoothed(matches, passages, REACH)
    kept = torch.zeros(len(value), dtype=torch.bool)
    # Stable sorting, so that equal matches are chosen in the order of reading.
    kept[value.argsort(descending=True, stable=True)[:most]] = True
    return torch.where(kept, kept.long().cumsum(0) - 1, -1), torch.ones(len(value))


def pooled(matches: torch.Tensor, passages: torch.Tensor, most: int) -> Slots:
    """Half of what is read are tokens as in `chosen`; all others are summed up in groups.

    A group is a run of neighbours, each weighed by exp(match); groups are of nearly one size. One
    reaches over a chosen run or the edge of a passage only where there are more such runs than
    groups. Sums alone are of no use (docs/how-it-works.md).
    """
    alone = chosen(matches, passages, most // 2)[0] >= 0
    loose = (~alone).nonzero()[:, 0]
    groups = most - most // 2
    edge = (loose.diff() > 1) | (passages[loose].diff() != 0)
    runs = torch.cat([edge.new_zeros(1), edge]).cumsum(0)
    sizes = _at_most(_sizes(runs), groups)
    into, _ = _grouped(matches[loose], sizes, allot(groups, sizes, [float(n) for n in sizes]))
    # Numbers in the order of the text: a read token's place is that of its first token.
    first = torch.arange(len(matches))
    begins = torch.searchsorted(into, torch.arange(groups))
    first[loose] = loose[begins[into]]
    return first.unique(return_inverse=True)[1], matches.exp()


def hierarchical(matches: torch.Tensor, passages: torch.Tensor, most: int) -> Slots:
    """The best passage whole, as far as that may be; the others in groups, coarser and coarser.

    A best passage that is too long is cut like in `chosen`. Groups of a passage stand for twice as
    many tokens as those of the passage before it.
    """
    sizes = _sizes(passages)
    first = sizes[0]
    if most <= first:
        slot, share = chosen(matches[:first], passages[:first], most)
        rest = torch.full((len(matches) - first,), -1)
        return torch.cat([slot, rest]), torch.cat([share, torch.ones(len(rest))])
    others = _at_most(sizes[1:], most - first)
    # Half the share of each passage before: groups twice as large.
    weights = [size * 0.5**rank for rank, size in enumerate(others)]
    counts = [first, *allot(most - first, others, weights)]
    return _grouped(matches, [first, *others], counts)


_METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], Slots]] = {
    "weighted_sum": pooled,
    "attention": chosen,
    "hierarchical": hierarchical,
    "recompute": chosen,
}


def smoothed(values: torch.Tensor, passages: torch.Tensor, reach: int) -> torch.Tensor:
    """The mean of what stands around each token `[n]` in its passage, nearer ones counting more."""
    n = len(values)
    offsets = torch.arange(-reach, reach + 1)
    # From 1 at the token itself in equal steps to nothing `reach + 1` tokens away.
    weights = 1.0 - offsets.abs() / (reach + 1)
    at = torch.arange(n)[:, None] + offsets
    inside = (at >= 0) & (at < n)
    at = at.clamp(0, max(0, n - 1))
    weights = torch.where(inside & (passages[at] == passages[:, None]), weights, 0.0)
    return (values[at] * weights).sum(-1) / weights.sum(-1)


def allot(total: int, sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Numbers in proportion to weights, by the method of highest averages (d'Hondt)."""
    # Each gets 1, whatever the total, before any gets 2, and none more than its size; what finds
    # no taker is left.
    given = [1] * len(sizes)
    left = total - len(sizes)
    heap = [(-weights[i] / 2, i) for i in range(len(sizes)) if sizes[i] > 1]
    heapq.heapify(heap)
    while left > 0 and heap:
        _, i = heapq.heappop(heap)
        given[i] += 1
        left -= 1
        if given[i] < sizes[i]:
            heapq.heappush(heap, (-weights[i] / (given[i] + 1), i))
    return given


def _sizes(passages: torch.Tensor) -> list[int]:
    """How many tokens each passage has, in their order."""
    return list(passages.unique_consecutive(return_counts=True)[1].tolist())


def _at_most(sizes: list[int], groups: int) -> list[int]:
    """The same tokens as one run where there are more passages than groups to make of them."""
    return sizes if len(sizes) <= groups else [sum(sizes)]


def _grouped(matches: torch.Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Slots:
    """Each run in that many groups of nearly one size."""
    slots, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        slots.append(start + torch.arange(size) * count // size)
        start += count
    return torch.cat(slots), matches.exp()
