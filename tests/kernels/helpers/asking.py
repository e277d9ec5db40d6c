"""Stored token ids and a query at random, for the tests of words."""

from __future__ import annotations

import torch

KINDS = 9


def asking(
    batch: int, tokens: int, blocks: int, block: int, parts: int
) -> tuple[torch.Tensor | int, ...]:
    """What `words` is given: ids in and out of a vocabulary of 40 tokens, and texts of 3 blocks."""
    classes = torch.randint(0, KINDS, (41,))
    classes[-1] = 0
    query = torch.randint(-2, 45, (batch, tokens))
    of = torch.randint(-1, parts, (batch, tokens))
    token_ids = torch.randint(-2, 45, (blocks, block))
    positions = torch.where(torch.rand(blocks, block) > 0.1, 5, -1)
    slots = torch.arange(blocks)
    successor = torch.where((slots % 3 < 2) & (slots + 1 < blocks), slots + 1, -1)
    seen = torch.rand(batch, blocks) > 0.3
    return query, of, token_ids, positions, successor, seen, classes, KINDS, parts
