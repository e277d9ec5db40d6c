"""Small tensors of the host on their way to a device, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def uploaded(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device; one that is on a device already is moved as PyTorch does.

    Equivalent PyTorch: `tensor.to(device)`. A copy to a GPU from memory that may be moved makes the
    host wait for all that is under way there; one from pinned memory does not.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # PyTorch gives the pinned copy to nobody else before the device has read it.
    return tensor.pin_memory().to(device, non_blocking=True)


def numbers_on(device: torch.device, *columns: Sequence[int] | torch.Tensor) -> list[torch.Tensor]:
    """Columns of as many whole numbers each, as `[n]` int64 on a device: one copy for all."""
    whole = [torch.as_tensor(column, dtype=torch.int64) for column in columns]
    return list(uploaded(torch.stack(whole), device))
