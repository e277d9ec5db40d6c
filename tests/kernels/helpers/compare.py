"""Comparisons that say what differs, where and by how much."""

from collections.abc import Callable
from typing import Any

import torch

from cmr.kernels import using


def specified(operation: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the specification of an operation gives, in new tensors."""
    with using("reference"):
        return operation(*arguments, **named)


def report(name: str, have: torch.Tensor, want: torch.Tensor, allowed: torch.Tensor) -> str:
    """The worst element, its position, the rms ratio and the share of elements that fail."""
    have, want = have.double(), want.double()
    error = (have - want).abs().nan_to_num(nan=torch.inf)
    error = error.masked_fill(have == want, 0.0).masked_fill(have.isnan() & want.isnan(), 0.0)
    excess = (error - allowed).reshape(-1)
    worst = int(excess.argmax())
    position = tuple(int(axis) for axis in torch.unravel_index(torch.tensor(worst), have.shape))
    finite = torch.isfinite(error) & torch.isfinite(want)
    scale = want[finite].square().mean().sqrt().clamp(min=1e-300)
    ratio = error[finite].square().mean().sqrt() / scale
    failing = (excess > 0).double().mean()
    return (
        f"{name}: worst at {position}: {have.reshape(-1)[worst]:.6g} instead of "
        f"{want.reshape(-1)[worst]:.6g}; rms error / rms {ratio:.3g}; {failing:.2%} fail"
    )


def assert_close(
    name: str, have: torch.Tensor, want: torch.Tensor, atol: float = 1e-5, rtol: float = 1e-5
) -> None:
    """Equal infinities and NaNs, every other element within atol + rtol |want|."""
    assert have.shape == want.shape, f"{name}: shape {list(have.shape)}, not {list(want.shape)}"
    if not have.numel():
        return
    have, want = have.double(), want.double()
    allowed = atol + rtol * want.abs().nan_to_num(posinf=0.0, neginf=0.0)
    same = torch.isclose(have, want, atol=atol, rtol=rtol, equal_nan=True)
    assert bool(same.all()), report(name, have, want, allowed)


def assert_error_at_most_twice(
    name: str, have: torch.Tensor, naive: torch.Tensor, exact: torch.Tensor, floor: float
) -> None:
    """Largest error at most twice that of plain low-precision PyTorch, plus `floor`."""
    assert have.shape == exact.shape, f"{name}: shape {list(have.shape)}, not {list(exact.shape)}"
    limit = 2 * float((naive.double() - exact).abs().max()) + floor
    worst = float((have.double() - exact).abs().max())
    allowed = torch.full_like(exact, limit)
    assert worst <= limit, report(name, have, exact, allowed)
