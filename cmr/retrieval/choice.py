"""What a search chose."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Choice(NamedTuple):
    """The passages chosen for each row of a batch. One choice serves all layers.

    Attributes:
        table: `[batch, passages, run]` int64 slots of the blocks to read, passage by passage in
            the order of the text; -1 where there is none.
        stamps: the same shape, int64, the blocks' numbers: a slot that was given to another block
            since then has another number and must not be read; -1 where there is none.
        scores: `[batch, passages]` float32, the passages' scores, `-inf` where there is none.
        certainty: `[batch]` float32, how far the best passage stands out (see `Retriever.search`).
        within: `[batch, passages, 2]` int64, the first and the last position of its text that each
            passage is read in. A token of the table is read where it lies in one of a row's. None:
            all of them are.
        parts: `[batch, passages]` int64, the part of what was asked that found each passage, -1
            where there is none. None: the parts were not told by who asked.
    """

    table: torch.Tensor
    stamps: torch.Tensor
    scores: torch.Tensor
    certainty: torch.Tensor
    within: torch.Tensor | None = None
    parts: torch.Tensor | None = None

    @classmethod
    def nothing(cls, batch: int, device: torch.device) -> Choice:
        """A choice of no passage at all."""
        none = torch.zeros(batch, 0, 1, dtype=torch.int64, device=device)
        return cls(none, none, none[..., 0].float(), torch.zeros(batch, device=device))

    def reads(self, positions: torch.Tensor) -> torch.Tensor:
        """Which tokens of the table are read, by their positions `[batch, blocks, block_size]`."""
        if self.within is None:
            return torch.ones_like(positions, dtype=torch.bool)
        places = positions[..., None]
        first, last = self.within[:, None, None].unbind(-1)
        return ((places >= first) & (places <= last)).any(-1)

    def select(self, rows: torch.Tensor) -> Choice:
        """The choice of the given rows, in their order."""
        return Choice(*(None if part is None else part.index_select(0, rows) for part in self))  # type: ignore[arg-type]
