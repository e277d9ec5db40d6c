"""Checks of states that users give; each shows both sides."""

from __future__ import annotations

import torch

from cmr.errors import ModelMismatchError


def expect_states(
    name: str, states: torch.Tensor, hidden: int, ranks: tuple[int, ...]
) -> torch.Tensor:
    """`states`, if they are floats `[..., hidden]` of one of the ranks.

    Raises:
        TypeError: no tensor of floats.
        ValueError: another rank.
        ModelMismatchError: another width.
    """
    if not isinstance(states, torch.Tensor) or not states.is_floating_point():
        what = states.dtype if isinstance(states, torch.Tensor) else type(states).__name__
        raise TypeError(f"{name}: a tensor of floats expected, got {what}")
    if states.ndim not in ranks:
        shapes = {1: "[hidden]", 2: "[tokens, hidden]", 3: "[batch, tokens, hidden]"}
        wanted = " or ".join(shapes[rank] for rank in ranks)
        raise ValueError(f"{name}: {wanted} expected, got {list(states.shape)}")
    if states.shape[-1] != hidden:
        raise ModelMismatchError(f"{name}: hidden size {hidden} expected, got {states.shape[-1]}")
    return states


def expect_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Raises ModelMismatchError unless the tensor is on the device."""
    if tensor.device != device:
        raise ModelMismatchError(f"{name}: device {device} expected, got {tensor.device}")


def expect_mask(mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    """A mask of the states' shape without `hidden`, as bools.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"attention_mask: a tensor expected, got {type(mask).__name__}")
    if mask.shape != states.shape[:-1]:
        wanted = list(states.shape[:-1])
        raise ValueError(f"attention_mask: {wanted} expected, got {list(mask.shape)}")
    return mask.to(states.device) != 0
