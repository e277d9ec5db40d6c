"""The turns of a conversation on their way into blocks: none shares a block with another.

A passage that holds what a user told, what was asked later and what the model answered is found by
the question, and read with the answer: a small model says again what it said before, right or not.
So each turn begins a block, no passage goes over its edge, and what was asked or answered weighs
less in a search than what was told.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from cmr.integration.capture.columns import gather
from cmr.kernels.upload import uploaded
from cmr.memory.batch import BlockTurns

UNSAID, TOLD, OTHER = 0, 1, 2
"""Kinds of tokens: of a template; what a user told; what one asked, or the model answered."""
OTHER_WEIGHT = 0.25
"""Length of the index vectors of what was asked or answered: told ones have 1. Chosen on the people
of `benchmarks.recall.again` with even seeds."""


def stored_only(kinds: torch.Tensor, valid: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Kinds `[rows, 1 + tokens]`, changed in place, that are `UNSAID` outside of what is stored.

    `valid`: each row's half-open range of tokens. What stands in front of the first one stays: a
    turn that goes on is known by it.
    """
    places = torch.arange(-1, kinds.shape[1] - 1)
    for row, (start, stop) in zip(kinds, valid, strict=True):
        row[(places >= stop) | (places < start - 1)] = UNSAID
    return kinds


class Layout:
    """Where tokens of rows stand when each of their turns begins a block.

    Args:
        kinds: `[rows, 1 + tokens]` int8 on the CPU, the first that of the token before them. What
            nobody said stands nowhere.
        size: tokens in a block.

    Attributes:
        places: `[rows, width]` int64 on the CPU, the column each token comes from; -1: padding.
    """

    def __init__(self, kinds: torch.Tensor, size: int) -> None:
        rows, self._begins, self._others = list[list[int]](), list[set[int]](), list[set[int]]()
        for row in kinds.tolist():
            places, begins, others = list[int](), set[int](), set[int]()
            for at, (before, kind) in enumerate(pairwise(row)):
                if kind == UNSAID:
                    continue
                if kind != before:
                    places += [-1] * (-len(places) % size)
                    begins.add(len(places) // size)
                if kind == OTHER:
                    others.add(len(places) // size)
                places.append(at)
            rows.append(places)
            self._begins.append(begins)
            self._others.append(others)
        width = max(map(len, rows))
        self.places = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
        self.places = self.places.long().view(len(rows), width)
        self._there: dict[torch.device, torch.Tensor] = {}

    def moved(self, x: torch.Tensor, dim: int = 1, padding: float = 0) -> torch.Tensor:
        """A column of tokens `[rows, ...]`, tokens at `dim`, in this layout."""
        if x.device not in self._there:  # once, for all layers and columns
            self._there[x.device] = uploaded(self.places, x.device)
        places, tokens = self._there[x.device], x.movedim(dim, 1)
        empty = (places < 0).view(*places.shape, *[1] * (tokens.ndim - 2))
        there = gather(tokens, places.clamp(min=0))
        return there.masked_fill(empty, padding).movedim(1, dim)

    def turns(self, chosen: Sequence[tuple[int, int]]) -> BlockTurns:
        """What is known of the blocks chosen, `(row, block)` each."""
        return BlockTurns(
            [block in self._begins[row] for row, block in chosen],
            [OTHER_WEIGHT if block in self._others[row] else 1.0 for row, block in chosen],
        )
