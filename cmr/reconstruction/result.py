"""What a reconstruction gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
        """The given states in their order, with weights that sum to 1 again.

        Args:
            rows: `[n]` int64.
        """
        weights = self.weights[rows]
        return Reconstruction(
            states=self.states[rows],
            weights=weights / weights.sum() if len(weights) else weights,
            similarity=self.similarity[rows],
            relevance=self.relevance[rows],
            timestamp=self.timestamp[rows],
            passages=self.passages[rows],
            layers=self.layers[rows],
            sources=tuple(self.sources[row] for row in rows.tolist()),
            method=self.method,
        )
