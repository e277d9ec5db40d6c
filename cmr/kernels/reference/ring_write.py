"""Writing whole blocks into the rows of preallocated buffers, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmr.kernels.reference._shapes import expect_float, expect_shape
from cmr.kernels.reference.score import inverse_norm


def ring_write(
    destinations: Sequence[torch.Tensor], slots: torch.Tensor, blocks: Sequence[torch.Tensor]
) -> None:
    """Writes n blocks into the same n slots of several buffers.

    Args:
        destinations: buffers [slots, ...], changed in place; dtypes may differ.
        slots: [n] int64, distinct, each below the number of slots; n may be 0. A cursor that
            moves makes a buffer a ring: nothing is rolled.
        blocks: for each buffer [n, ...] with the buffer's trailing shape, cast to its dtype.

    Raises:
        TypeError, ValueError: counts, dtypes or shapes do not fit; nothing is written then.
        IndexError: a slot out of range (on a CPU; elsewhere a precondition).

    Equivalent PyTorch: `destination[slots] = blocks.to(destination.dtype)` for each buffer.
    """
    _expect_slots(slots)
    if len(destinations) != len(blocks):
        raise ValueError(f"blocks: {len(destinations)} tensors expected, got {len(blocks)}")
    for index, (destination, block) in enumerate(zip(destinations, blocks, strict=True)):
        _expect_rows(f"blocks[{index}]", destination, slots, block)
    _expect_range(destinations, slots)
    for destination, block in zip(destinations, blocks, strict=True):
        destination.index_copy_(0, slots, block.to(destination.dtype))


def ring_write_index(index: torch.Tensor, slots: torch.Tensor, states: torch.Tensor) -> None:
    """Writes n blocks of states into an index, each token's state scaled to norm 1.

    Args:
        index: [slots, block, H], any float dtype, changed in place.
        slots: [n] int64, distinct, each below the number of slots; n may be 0.
        states: [n, block, H], any float dtype; scaled in float32, then cast to the index's dtype.
            A state that is all 0 stays 0.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit; nothing is written then.
        IndexError: a slot out of range (on a CPU; elsewhere a precondition).

    Equivalent PyTorch: `index[slots] = F.normalize(states.float(), dim=-1).to(index.dtype)`.
    """
    _expect_slots(slots)
    expect_float("index", index)
    expect_float("states", states)
    _expect_rows("states", index, slots, states)
    _expect_range([index], slots)
    unit = states.float() * inverse_norm(states).unsqueeze(-1)
    index.index_copy_(0, slots, unit.to(index.dtype))


def _expect_slots(slots: torch.Tensor) -> None:
    expect_shape("slots", slots, ("n", None))
    if slots.dtype != torch.int64:
        raise TypeError(f"slots: dtype torch.int64 expected, got {slots.dtype}")


def _expect_rows(
    name: str, destination: torch.Tensor, slots: torch.Tensor, block: torch.Tensor
) -> None:
    wanted = (slots.shape[0], *destination.shape[1:])
    if tuple(block.shape) != wanted:
        raise ValueError(f"{name}: shape {list(wanted)} expected, got {list(block.shape)}")


def _expect_range(destinations: Sequence[torch.Tensor], slots: torch.Tensor) -> None:
    """Before the first write, where looking costs no device synchronisation."""
    if slots.device.type != "cpu" or not slots.numel() or not destinations:
        return
    fewest = min(destination.shape[0] for destination in destinations)
    low, high = slots.min().item(), slots.max().item()
    if low < 0 or high >= fewest:
        raise IndexError(f"slots: numbers in 0..{fewest - 1} expected, got {low}..{high}")
