"""What the model classes give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


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
