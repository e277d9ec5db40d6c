"""What is handed over to be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

Angles = tuple[torch.Tensor, torch.Tensor]


class LayerSource(NamedTuple):
    """What one layer gives to store, as the model computed it.

    Attributes:
        keys: `[batch, heads, tokens, dim]`, or hidden states `[batch, 1, tokens, hidden]`.
        values: the same shape, None for hidden states.
        turned: cosine and sine `[batch, tokens, rotary_dim]` float32 by which the keys are rotated:
            they are un-rotated on their way; None where they are not rotated.
    """

    keys: torch.Tensor
    values: torch.Tensor | None = None
    turned: Angles | None = None


@dataclass
class BlockBatch:
    """`n` blocks to store, in the order of their text within each session.

    Everything is given as the model computed it, row by row; `pick` says which blocks of which rows
    are stored.

    Attributes:
        sessions: `n` session numbers.
        token_ids: `[batch, tokens]` int64.
        positions: `[batch, tokens]` int64 positions in the session's text; -1 marks padding.
        index: `[batch, tokens, hidden]` states at the index layer, not yet normalised.
        layers: layer number to what it gives, `tokens` long.
        relevance: `[batch, ceil(tokens / block_size)]` float32 or None.
        pick: `[n]` int64: row * ceil(tokens / block_size) + block; behind a row's end is padding.
            None: all blocks, row by row.
    """

    sessions: Sequence[int]
    token_ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    layers: Mapping[int, LayerSource]
    relevance: torch.Tensor | None = None
    pick: torch.Tensor | None = None
