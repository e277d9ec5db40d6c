"""What is known of the forward under way."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.reweave.attention import LayerMemory
from cmr.integration.reweave.recall import Recall


@dataclass
class Step:
    """One forward of the decoder.

    Attributes:
        goes_on: whether the new tokens go on with a text, and ask nothing new.
        ready: what each layer reads, put together ahead of a compiled forward; None where layers
            put theirs together as they come to it.
        noted: further columns `[batch, tokens, ...]` for the record, by name.
        entering: states `[batch, tokens, hidden]` that entered the layers where tokens are compared
            with stored ones, until the head has spoken.
        weights: whether attention weights are to come out of it.
        said: `[batch, tokens]` float32, share of the stored tokens in what was said next, of the
            tokens that have logits; None: nothing was asked.
    """

    record: WindowRecord | None
    sessions: list[int]
    recall: Recall | None
    position_ids: torch.Tensor
    query_mask: torch.Tensor | None
    token_ids: torch.Tensor
    goes_on: bool = False
    ready: dict[int, LayerMemory] | None = None
    index: torch.Tensor | None = None
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    noted: dict[str, torch.Tensor] = field(default_factory=dict)
    leaving: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    turns: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    gates: dict[int, torch.Tensor] = field(default_factory=dict)
    entering: dict[int, torch.Tensor] = field(default_factory=dict)
    weights: bool = False
    said: torch.Tensor | None = None
