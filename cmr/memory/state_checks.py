"""Checks of hidden states that users give. Each error shows what was expected and what came."""

from __future__ import annotations

import torch

from cmr.config import checks as check
from cmr.errors import ModelMismatchError

# Data types of states that are stored.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = {1: "[hidden]", 2: "[tokens, hidden]", 3: "[batch, tokens, hidden]"}


def expect_states(
    name: str, states: torch.Tensor, hidden: int, ranks: tuple[int, ...]
) -> torch.Tensor:
    """`states`, if they are floats `[..., hidden]` of one of the ranks."""
    if not isinstance(states, torch.Tensor) or not states.is_floating_point():
        what = states.dtype if isinstance(states, torch.Tensor) else type(states).__name__
        raise TypeError(f"{name}: a tensor of floats expected, got {what}")
    if states.ndim not in ranks:
        wanted = " or ".join(SHAPES[rank] for rank in ranks)
        raise ValueError(f"{name}: {wanted} expected, got {list(states.shape)}")
    if states.shape[-1] != hidden:
        raise ModelMismatchError(f"{name}: hidden size {hidden} expected, got {states.shape[-1]}")
    return states


def expect_finite(name: str, states: torch.Tensor) -> None:
    """Raises ValueError where a value is infinite or NaN. Waits for the device."""
    if not bool(torch.isfinite(states).all()):
        raise ValueError(f"{name}: finite values expected, got some that are not")


def expect_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Raises ModelMismatchError unless the tensor is on the device."""
    if tensor.device != device:
        raise ModelMismatchError(f"{name}: device {device} expected, got {tensor.device}")


def expect_dtype(name: str, tensor: torch.Tensor, first: torch.Tensor, which: str) -> None:
    """Raises ModelMismatchError unless the tensor has the data type of the one that came first."""
    if tensor.dtype != first.dtype:
        raise ModelMismatchError(
            f"{name}: dtype {first.dtype} ({which}) expected, got {tensor.dtype}"
        )


def expect_mask(mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    """A mask of the states' shape without `hidden`, as bools on their device."""
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"attention_mask: a tensor expected, got {type(mask).__name__}")
    if mask.shape != states.shape[:-1]:
        wanted = list(states.shape[:-1])
        raise ValueError(f"attention_mask: {wanted} expected, got {list(mask.shape)}")
    return mask.to(states.device) != 0


def states_to_store(given: object, name: str = "hidden_state") -> torch.Tensor:
    """`[tokens, hidden]` finite floats, detached, of `[hidden]` or `[tokens, hidden]`."""
    what = given.dtype if isinstance(given, torch.Tensor) else type(given).__name__
    if not isinstance(given, torch.Tensor) or what not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name}: a tensor of {known} expected, got {what}")
    states = given.detach()
    if states.ndim == 1:
        states = states[None]
    if states.ndim != 2 or not states.numel():
        raise ValueError(f"{name}: [hidden] or [tokens, hidden] expected, got {list(given.shape)}")
    expect_finite(name, states)
    return states


def relevance_to_store(given: float | torch.Tensor, count: int) -> torch.Tensor:
    """`[count]` float32 numbers in [0, 1] on the CPU, of one number or `[count]`."""
    if not isinstance(given, torch.Tensor):
        return torch.full((count,), check.real("relevance_score", given, 0.0, 1.0))
    if given.shape not in ((), (count,)):
        raise ValueError(f"relevance_score: [{count}] expected, got {list(given.shape)}")
    values = given.detach().float().cpu().expand(count)
    # Asked this way round so that NaN is refused, too.
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("relevance_score: numbers in [0, 1] expected, got others")
    return values
