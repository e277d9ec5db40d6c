"""Stored blocks and maxima at random, for the tests of the selection."""

from __future__ import annotations

import torch

from cmr.kernels.reference.select import Rule, SearchColumns

RULE = Rule(
    peak_power=2,
    clamp=8.0,
    threshold=0.0,
    null_base=0.7,
    null_slope=0.18,
    few_blocks=12,
    few_certainty=1.0,
    passage=2,
    neighbours=1,
)


def columns_of(blocks: int, sessions: int, block: int) -> SearchColumns:
    """A ring that has wrapped around: each session's blocks chained in the order of their text."""
    created = (torch.arange(blocks) + blocks // 3) % max(blocks, 1) + 1
    session = torch.randint(0, sessions, (blocks,))
    successor = torch.full((blocks,), -1)
    predecessor = torch.full((blocks,), -1)
    positions = torch.full((blocks, block), -1)
    for number in range(sessions):
        chain = (session == number).nonzero().flatten()
        chain = chain[created[chain].argsort()]
        successor[chain[:-1]] = chain[1:]
        predecessor[chain[1:]] = chain[:-1]
        positions[chain] = torch.arange(len(chain) * block).view(-1, block)
    if blocks > 2:
        positions[:, -1] = torch.where(torch.rand(blocks) > 0.5, -1, positions[:, -1])
    return SearchColumns(session, positions, successor, predecessor, created)


def rows_of(batch: int, tokens: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maxima and a query mask with at least one token a row."""
    maxima = torch.randn(batch, tokens, blocks) * 0.1 + 0.5
    mask = torch.rand(batch, tokens) > 0.3
    mask[:, 0] = True
    return maxima, mask


def passages_of(batch: int, tokens: int, k: int, blocks: int) -> tuple[torch.Tensor, ...]:
    """Values, shares, scores, starts and fits of the best passages, what `cover` is given."""
    values = torch.randn(batch, tokens, k).clamp(-8, 8)
    shares = torch.rand(batch, tokens).softmax(-1)
    scores = torch.rand(batch, k).sort(-1, descending=True).values
    starts = torch.stack([torch.randperm(blocks)[:k] for _ in range(batch)])
    starts[:, k // 2 + 1 :: 3] = -1
    return values, shares, scores, starts, scores * 2.0 - 0.5
