"""The reconstruction methods: what becomes of recalled tokens where only some may be read.

A row is planned for itself, on the CPU, once a search. Tokens come in the order of reading: passage
by passage, the best passage first, each in the order of its text.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import torch

from cmr.config import RECONSTRUCTION_METHODS
from cmr.config import checks as check
from cmr.reconstruction.limits import Limits
from cmr.reconstruction.plan import Plan

REACH = 16
"""Tokens on either side that a match counts for, less with every step (docs/how-it-works.md)."""

Slots = tuple[torch.Tensor, torch.Tensor]


def plan_rows(
    method: str,
    matches: torch.Tensor,
    passages: torch.Tensor,
    mask: torch.Tensor,
    limits: Limits,
) -> Plan:
    """What is read of what was recalled, row by row.

    Args:
        method: one of `cmr.config.RECONSTRUCTION_METHODS`; 'recompute' chooses like 'attention'.
        matches: `[batch, n]` float32, see `matching.match`.
        passages: `[n]` int64 number of each token's passage, 0 the best one, in rising order.
        mask: `[batch, n]` bool, True where there is a token.
        limits: how many may be read.

    Returns:
        The plan, on the CPU. A row within its limits reads all as it is.

    Raises:
        ConfigError: there is no such method.
    """
    check.choice("reconstruction_method", method, RECONSTRUCTION_METHODS)
    matches, passages, mask = matches.cpu(), passages.cpu(), mask.cpu()
    slots, shares = [], []
    for row in range(len(mask)):
        columns = mask[row].nonzero()[:, 0]
        most = limits.of(len(columns))
        if most == len(columns):
            slot, share = torch.arange(most), torch.ones(most)
        else:
            slot, share = _METHODS[method](matches[row, columns], passages[columns], most)
        slots.append(torch.full((mask.shape[1],), -1).index_copy_(0, columns, slot))
        shares.append(torch.zeros(mask.shape[1]).index_copy_(0, columns, share))
    return Plan.of(slots, shares)


def chosen(matches: torch.Tensor, passages: torch.Tensor, most: int) -> Slots:
    """The tokens that match best together with what stands around them, as they are.

    A match counts for its neighbours too, so that whole runs are chosen: a name is of no use
    without what is said of it, and a single token out of its run is of none (SnapKV pools its
    choice for the same reason; Li et al. 2024).

    Args:
        matches: `[n]` float32.
        passages: `[n]` int64, in rising order.
        most: tokens to choose, 1 to n.

    Returns:
        For each token the number of the read token that it goes into, -1 for none, and its share.
    """
    value = smoothed(matches, passages, REACH)
    kept = torch.zeros(len(value), dtype=torch.bool)
    kept[value.argsort(descending=True, stable=True)[:most]] = True
    return torch.where(kept, kept.long().cumsum(0) - 1, -1), torch.ones(len(value))


def pooled(matches: torch.Tensor, passages: torch.Tensor, most: int) -> Slots:
    """Half of what is read are tokens as in `chosen`; all others are summed up in groups.

    A group is a run of neighbours, each weighed by exp(match); groups are of nearly one size. One
    reaches over a chosen run or the edge of a passage only where there are more such runs than
    groups. Sums alone are of no use (docs/how-it-works.md). Arguments and result as of `chosen`.
    """
    alone = chosen(matches, passages, most // 2)[0] >= 0
    loose = (~alone).nonzero()[:, 0]
    groups = most - most // 2
    edge = (loose.diff() > 1) | (passages[loose].diff() != 0)
    runs = torch.cat([edge.new_zeros(1), edge]).cumsum(0)
    sizes = _runs(_sizes(runs), groups)
    into, _ = _grouped(matches[loose], sizes, allot(groups, sizes, [float(n) for n in sizes]))
    first = torch.arange(len(matches))  # where the read token that each one goes into begins
    begins = torch.searchsorted(into, torch.arange(groups))
    first[loose] = loose[begins[into]]
    return first.unique(return_inverse=True)[1], matches.exp()


def hierarchical(matches: torch.Tensor, passages: torch.Tensor, most: int) -> Slots:
    """The best passage whole, as far as that may be; the others in groups, coarser and coarser.

    A best passage that is too long is cut like in `chosen`. Groups of a passage stand for twice as
    many tokens as those of the passage before it. Arguments and result as of `chosen`.
    """
    sizes = _sizes(passages)
    first = sizes[0]
    if most <= first:
        slot, share = chosen(matches[:first], passages[:first], most)
        rest = torch.full((len(matches) - first,), -1)
        return torch.cat([slot, rest]), torch.cat([share, torch.ones(len(rest))])
    others = _runs(sizes[1:], most - first)
    weights = [size * 0.5**rank for rank, size in enumerate(others)]
    counts = [first, *allot(most - first, others, weights)]
    return _grouped(matches, [first, *others], counts)


def smoothed(values: torch.Tensor, passages: torch.Tensor, reach: int) -> torch.Tensor:
    """The mean of what stands around each token in its passage, nearer ones counting for more.

    Weights fall from 1 at the token itself in equal steps to nothing `reach + 1` tokens away.

    Args:
        values: `[n]` float32.
        passages: `[n]` int64, in rising order.
        reach: tokens on either side, 0 or more.
    """
    n = len(values)
    offsets = torch.arange(-reach, reach + 1)
    weights = 1.0 - offsets.abs() / (reach + 1)
    at = torch.arange(n)[:, None] + offsets
    inside = (at >= 0) & (at < n)
    at = at.clamp(0, max(0, n - 1))
    weights = torch.where(inside & (passages[at] == passages[:, None]), weights, 0.0)
    return (values[at] * weights).sum(-1) / weights.sum(-1)


def allot(total: int, sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Numbers in proportion to weights, by the method of highest averages (d'Hondt).

    Args:
        total: to give away, one each at least; what finds no taker is left.
        sizes: the most that each may get.
        weights: at least 0. Each gets 1 before any gets 2.
    """
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
    sizes: list[int] = passages.unique_consecutive(return_counts=True)[1].tolist()
    return sizes


def _runs(sizes: list[int], most: int) -> list[int]:
    """The same tokens as one run where there are more passages than groups to make of them."""
    return sizes if len(sizes) <= most else [sum(sizes)]


def _grouped(matches: torch.Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Slots:
    """Each run in that many groups of nearly one size."""
    slots, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        slots.append(start + torch.arange(size) * count // size)
        start += count
    return torch.cat(slots), matches.exp()


_METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], Slots]] = {
    "weighted_sum": pooled,
    "attention": chosen,
    "hierarchical": hierarchical,
    "recompute": chosen,
}
