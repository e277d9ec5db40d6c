"""What a `LayeredMemoryBuffer` is given, checked before anything is changed."""

from __future__ import annotations

import torch

from cmr.config import checks as check

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def optional(name: str, value: int | None) -> int | None:
    """`value`, an integer of at least 0, or None."""
    return None if value is None else check.integer(name, value, 0)


def states_of(given: object, name: str = "hidden_state") -> torch.Tensor:
    """`[tokens, hidden]` finite floats, detached."""
    what = given.dtype if isinstance(given, torch.Tensor) else type(given).__name__
    if not isinstance(given, torch.Tensor) or what not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name}: a tensor of {known} expected, got {what}")
    states = given.detach()
    if states.ndim == 1:
        states = states[None]
    if states.ndim != 2 or not states.numel():
        raise ValueError(f"{name}: [hidden] or [tokens, hidden] expected, got {list(given.shape)}")
    if not bool(torch.isfinite(states).all()):
        raise ValueError(f"{name}: finite values expected, got some that are not")
    return states


def relevance_of(given: float | torch.Tensor, count: int) -> torch.Tensor:
    """`[count]` float32 numbers in [0, 1] on the CPU."""
    if not isinstance(given, torch.Tensor):
        return torch.full((count,), check.real("relevance_score", given, 0.0, 1.0))
    if given.shape not in ((), (count,)):
        raise ValueError(f"relevance_score: [{count}] expected, got {list(given.shape)}")
    values = given.detach().float().cpu().expand(count)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("relevance_score: numbers in [0, 1] expected, got others")
    return values
