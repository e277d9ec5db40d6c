"""What the model classes give back: `CMROutput`, with states brought to the width asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

PROJECTION_SEED = 256


@dataclass
class CMROutput(ModelOutput):
    """Output of a model with a memory; fields are attributes and keys, those of None are no keys.

    Attributes:
        loss: of the `labels`, where they were given.
        logits: `[batch, tokens, vocabulary]`, the model's own.
        last_hidden_state: `[batch, tokens, width]` states in front of the head; projected where the
            class says so.
        hidden_states: of all layers, the model's own, where they were asked for.
        attentions: weights, where they were asked for.
        past_key_values: the cache, where one was given or `use_cache=True`.
        memory_stats: what is stored: `total_captured_states` and `layers_with_memory` of the
            buffer, `tokens` and `sessions` of the memory, and more where it was asked for.
        performance_stats: calls, tokens and seconds so far.
        retrieval_stats: what was searched for and recalled.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    past_key_values: Any = None
    memory_stats: dict[str, Any] | None = None
    performance_stats: dict[str, Any] | None = None
    retrieval_stats: dict[str, Any] | None = None


class Projection(nn.Module):
    """A fixed orthonormal map: of a width to a larger one it keeps cosines and norms exactly.

    To a smaller one it keeps them in expectation (a random subspace; Johnson and Lindenstrauss
    1984), off by about 1 / sqrt(width), with norms scaled to match. The same widths give the same
    map, everywhere.
    """

    weight: torch.Tensor

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        # In float64, so that machines agree on the map once it is rounded to float32.
        generator = torch.Generator().manual_seed(PROJECTION_SEED)
        tall = torch.randn(max(hidden, width), min(hidden, width), generator=generator).double()
        basis, triangle = torch.linalg.qr(tall)
        basis = basis * triangle.diagonal().sign()  # QR leaves the signs to the implementation
        weight = basis if hidden >= width else basis.T
        if hidden > width:
            weight = weight * (hidden / width) ** 0.5
        # Not saved: it follows from the two widths.
        self.register_buffer("weight", weight.float().contiguous(), persistent=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to `[..., width]`, computed in float32, in the states' dtype."""
        weight = self.weight.to(states.device)
        return (states.float() @ weight.float()).to(states.dtype)
