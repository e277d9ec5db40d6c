"""What a reconstruction gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

COLUMNS = ("states", "weights", "similarity", "relevance", "timestamp", "passages", "layers")
"""Fields of a `Reconstruction` with a row for each state."""


@dataclass(frozen=True)
class Reconstruction:
    """Memory states ready to be blended into a model's own.

    Attributes:
        states: `[m, hidden]`; each is one stored state, or a weighted sum of several.
        weights: `[m]` float32 of sum 1: how much each counts in front of what a token sees in it.
            All the same, unless several contexts were blended.
        similarity: `[m]` float32 in [-1, 1], largest cosine with a state that asked; 0 where nobody
            did.
        relevance: `[m]` float32 in [0, 1], that of the entries.
        timestamp: `[m]` float64, the number of the write, larger ones newer; 0 where not known.
        passages: `[m]` int64, the run of text that each state is of; 0 the best.
        layers: `[m]` int64 index into `hidden_states`; -1 where not known.
        sources: for each state the places in the list of entries (or the rows of the states) that
            it was made of.
        method: how it was made.
    """

    states: torch.Tensor
    weights: torch.Tensor
    similarity: torch.Tensor
    relevance: torch.Tensor
    timestamp: torch.Tensor
    passages: torch.Tensor
    layers: torch.Tensor
    sources: tuple[tuple[int, ...], ...]
    method: str

    def __len__(self) -> int:
        """How many states there are to read."""
        return len(self.states)

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return self.states.numel() * self.states.element_size()

    def select(self, rows: torch.Tensor) -> Reconstruction:
        """The states of some rows `[n]` in their order, with weights that sum to 1 again."""
        columns = {name: getattr(self, name)[rows] for name in COLUMNS}
        if len(rows):
            columns["weights"] = columns["weights"] / columns["weights"].sum()
        sources = tuple(self.sources[row] for row in rows.tolist())
        return replace(self, **columns, sources=sources)
