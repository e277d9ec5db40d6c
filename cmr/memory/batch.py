"""What is handed over to be stored, and how its layers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cmr.kernels.ring_write import ring_write_heads
from cmr.memory.allocation import Together

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


class BlockTurns(NamedTuple):
    """What is known of the turns of a conversation that `n` blocks are of.

    Attributes:
        begins: of each whether a turn begins with it: no passage goes over its edge.
        weights: of each, in a search: length of its index vectors.
    """

    begins: Sequence[bool]
    weights: Sequence[float]

    def part(self, which: slice) -> BlockTurns:
        """Those of some of the blocks."""
        return BlockTurns(self.begins[which], self.weights[which])


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
        turns: where turns begin and what they weigh; None: the blocks of a session go on with each
            other.
    """

    sessions: Sequence[int]
    token_ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    layers: Mapping[int, LayerSource]
    relevance: torch.Tensor | None = None
    pick: torch.Tensor | None = None
    turns: BlockTurns | None = None


def check_layers(
    layers: Mapping[int, LayerSource],
    all_keys: Mapping[int, torch.Tensor],
    all_values: Mapping[int, torch.Tensor],
) -> None:
    """Raises ValueError unless layers give what a store keeps of them, by its own tensors."""
    if set(layers) != set(all_keys):
        raise ValueError(f"layers {sorted(all_keys)} expected, got {sorted(layers)}")
    for number, source in layers.items():
        stored = {"keys": all_keys[number], "values": all_values.get(number)}
        for name, store in stored.items():
            given = getattr(source, name)
            if store is None or given is None:
                if store is not given:
                    has = "no values, got some" if store is None else "values, got none"
                    raise ValueError(f"layer {number} stores {has}")
            elif given.ndim != 4 or given.shape[1::2] != store.shape[1::2]:
                wanted = f"[batch, {store.shape[1]}, tokens, {store.shape[3]}]"
                raise ValueError(
                    f"layer {number}: {name} of shape {wanted} expected, got {list(given.shape)}"
                )


def write_layers(
    groups: Sequence[Together],
    slots: torch.Tensor,
    pick: torch.Tensor,
    layers: Mapping[int, LayerSource],
) -> None:
    """Write the blocks picked of what layers give into slots of a store; see `ring_write_heads`."""
    for group in groups:
        # Each layer's tensors stay on its own device: a model may be spread over several.
        device, sources = group.keys.device, [layers[number] for number in group.layers]
        turned = sources[0].turned
        assert all(source.turned is turned for source in sources), "one kind of rotation"
        cos, sin = turned or (None, None)
        ring_write_heads(
            group.keys,
            group.values,
            slots.to(device),
            pick.to(device),
            _side_by_side([source.keys for source in sources], device),
            None if group.values is None else _side_by_side([x.values for x in sources], device),
            None if cos is None else cos.to(device),
            None if sin is None else sin.to(device),
        )


def _side_by_side(given: Sequence[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    """Heads of layers `[batch, heads, tokens, dim]` as those of one layer."""
    parts = [x.to(device) for x in given if x is not None]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
