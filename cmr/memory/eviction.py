"""Which blocks give way: what a block is worth by strategy, and a fair share for every session.

Pure functions on host tensors, one entry a block. Nothing here knows where a block is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from cmr.config import EVICTION_STRATEGIES

# Numpy's sorts take a third of the time of torch's on a CPU.
Array = np.ndarray[Any, np.dtype[Any]]


class Candidates(NamedTuple):
    """`n` stored blocks as eviction sees them: columns `[n]` of a store on the CPU.

    NaN as relevance counts as 0; what is pinned is never chosen.
    """

    owner: torch.Tensor
    created: torch.Tensor
    last_access: torch.Tensor
    access_count: torch.Tensor
    relevance: torch.Tensor
    pinned: torch.Tensor


def keep_scores(strategy: str, c: Candidates, threshold: float | None = None) -> torch.Tensor:
    """What each block is worth; the lowest goes first.

    Args:
        strategy: `oldest`: `created`. `lru`: the last use, `max(created, last_access)`.
            `relevance`: `relevance`. `lru_relevance`: the mean of a block's rank by last use and
            its rank by relevance, each from 0 (lowest) to 1; equal values share a rank. Ranks, as
            clock and relevance have no common scale: each of the two decides one half, however
            narrow the range of its values is.
        c: the blocks.
        threshold: blocks of lower relevance score below all others, whatever the strategy, and
            keep their order; None: none do.

    Returns:
        `[n]` float64. Equal scores are possible: of those, the older block goes first.
    """
    relevance = c.relevance.double().nan_to_num(nan=0.0)
    last_use = torch.maximum(c.created, c.last_access)
    if strategy == "oldest":
        score = c.created.double()
    elif strategy == "lru":
        score = last_use.double()
    elif strategy == "relevance":
        score = relevance
    elif strategy == "lru_relevance":
        score = (_rank(last_use.numpy()) + _rank(relevance.numpy())) / 2
    else:
        known = ", ".join(EVICTION_STRATEGIES)
        raise ValueError(f"strategy: one of {known} expected, got {strategy!r}")
    if threshold is None or not len(score):
        return score
    # Far enough down that the best of these is below the worst of the others.
    gap = score.max() - score.min() + 1
    return torch.where(relevance < threshold, score - gap, score)


def choose_victims(
    c: Candidates,
    need: int,
    *,
    strategy: str,
    threshold: float | None = None,
    capacity: int,
    incoming: Mapping[int, int],
) -> torch.Tensor:
    """The blocks that give way to new ones; no session pays for another below its share.

    The share is `capacity` (of blocks) // the number of sessions that hold or are about to hold
    blocks. A session is over it by what it holds, its `incoming` blocks counted, above the share.
    In turn:

    1. a session that writes and is over its share pays for what it writes, with its own blocks;
    2. sessions that are over their share give blocks until they are not;
    3. a session that writes gives more of its own blocks.

    Within a turn the lowest `keep_scores` first, the older of equals. So the first m of these
    victims are the victims where only m are needed.

    Gives int64 positions in `c`, first to go first: `need` of them, or fewer where no more may go,
    because of pinned blocks, or because a session writes more than its share at once. With the
    blocks written for which there is room by then, the rest finds its own to replace.
    """
    if need < 0:
        raise ValueError(f"need: 0 or more blocks expected, got {need}")
    if capacity < 1:
        raise ValueError(f"capacity: 1 or more blocks expected, got {capacity}")
    writing = {session: count for session, count in incoming.items() if count}
    if any(count < 0 for count in writing.values()):
        raise ValueError(f"incoming: 0 or more blocks a session expected, got {dict(incoming)}")
    score = keep_scores(strategy, c, threshold)
    if not need or not len(score):
        return torch.empty(0, dtype=torch.int64)

    owner = c.owner.numpy()
    sessions, who, held = np.unique(owner, return_inverse=True, return_counts=True)
    coming = np.array([writing.get(session, 0) for session in sessions.tolist()])
    new = len(writing.keys() - set(sessions.tolist()))
    over = np.maximum(held + coming - capacity // (len(sessions) + new), 0)
    pays = np.minimum(over, coming)

    gives = (over > 0) | (coming > 0)
    order = np.flatnonzero(~c.pinned.numpy() & gives[who])
    if np.count_nonzero(gives) == 1 and need < len(order):
        # Of one session alone the worst ones go: the others need not be put in order.
        worth = score.numpy()[order]
        order = order[worth <= np.partition(worth, need - 1)[need - 1]]
    order = order[_order(score.numpy()[order], c.created.numpy()[order])]
    who = who[order]
    rank = _rank_within(who, len(sessions))
    turn = np.full(len(order), 3, np.int8)
    turn[coming[who] > 0] = 2
    turn[rank < over[who]] = 1
    turn[rank < pays[who]] = 0
    first = turn.argsort(kind="stable")[: min(need, np.count_nonzero(turn < 3))]
    return torch.from_numpy(order[first])


def _order(score: Array, created: Array) -> Array:
    """Positions by rising score, then by rising `created`, which has no value twice."""
    order = score.argsort()
    run = _first_of_run(score[order])
    if (run == np.arange(len(run))).all():
        return order
    key = np.empty_like(run)
    key[created.argsort()] = np.arange(len(run))
    key[order] += run * len(run)
    return key.argsort()


def _rank(values: Array) -> torch.Tensor:
    """Share of the other values that are lower, `[n]` float64 in [0, 1]."""
    order = values.argsort()
    rank = np.empty(len(values))
    rank[order] = _first_of_run(values[order])
    return torch.from_numpy(rank / max(len(values) - 1, 1))


def _first_of_run(ordered: Array) -> Array:
    """Position of the first of the equal values that each value stands among, `[n]` int64."""
    first = np.arange(len(ordered))
    first[1:][ordered[1:] == ordered[:-1]] = 0
    return np.maximum.accumulate(first)


def _rank_within(group: Array, groups: int) -> Array:
    """How many earlier entries are of the same group; `group` holds numbers below `groups`."""
    # Narrow integers are sorted by radix.
    order = group.astype(np.min_scalar_type(groups)).argsort(kind="stable")
    counts = np.bincount(group, minlength=groups)
    rank = np.empty_like(group)
    rank[order] = np.arange(len(group)) - (np.cumsum(counts) - counts)[group[order]]
    return rank
