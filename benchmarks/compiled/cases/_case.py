"""One compiled call and the limits that its code is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A call of a host function on meta tensors.

    No case may use a stack or spill a register, on any architecture.

    Attributes:
        name: `<module>.<function>/<shape>`.
        call: calls the host function.
        launches: kernels that it launches.
        matrix: names of the kernels that must use matrix instructions.
        wide: names of the kernels that must load 128 bits at a time.
        registers: most registers a thread.
        bytes: bytes that the call must move at least, read and written.
        flops: floating-point operations.
    """

    name: str
    call: Callable[[], None]
    launches: int
    bytes: int
    flops: int
    matrix: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    registers: int = 255


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def floats(*shape: int) -> torch.Tensor:
    """A float32 tensor without data."""
    return meta(*shape, dtype=torch.float32)


def integers(*shape: int) -> torch.Tensor:
    """An int64 tensor without data."""
    return meta(*shape, dtype=torch.int64)


def size(*tensors: torch.Tensor | None) -> int:
    """Bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
