"""Launching a kernel on the device of its tensors, and what is known of that device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from cmr.kernels import again

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """The GPU that a launch is configured for.

    Attributes:
        backend: `cuda` or `hip`.
        arch: compute capability such as 90, or a name such as `gfx942`.
        warp: lanes of a warp.
        processors: streaming multiprocessors (compute units).
        shared: bytes of shared memory that one program may use.
    """

    backend: str
    arch: int | str
    warp: int
    processors: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 108, 163 << 10),
    "sm_86": Target("cuda", 86, 32, 84, 99 << 10),
    "sm_89": Target("cuda", 89, 32, 128, 99 << 10),
    "sm_90": Target("cuda", 90, 32, 132, 227 << 10),
    "sm_100": Target("cuda", 100, 32, 148, 227 << 10),
    "sm_120": Target("cuda", 120, 32, 170, 99 << 10),
    "gfx942": Target("hip", "gfx942", 64, 304, 64 << 10),
}
"""The architectures that every kernel is compiled for in the tests."""


def target(device: torch.device) -> Target:
    """What is known of a device; for a CPU (interpreted kernels) an H100's figures."""
    return current_target or _query(device)


@functools.cache
def _query(device: torch.device) -> Target:
    if device.type != "cuda":
        return TARGETS["sm_90"]
    # Asked once a device: the properties are the same for life, and cost a call of the driver.
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", 64 << 10)
    count = found.multi_processor_count
    if torch.version.hip:
        return Target("hip", found.gcnArchName.partition(":")[0], found.warp_size, count, shared)
    return Target("cuda", 10 * found.major + found.minor, 32, count, shared)


current_target: Target | None = None
"""Set while kernels are compiled for a GPU that is not there."""


def run(kernel: Any, grid: Grid, named: dict[str, Any], options: dict[str, Any]) -> None:
    """Launch; replaced where launches are recorded or compiled instead."""
    compiled = kernel[grid](**named, **options)
    if compiled is not None and again.noting():  # interpreted kernels are not compiled
        names = kernel.arg_names
        pointers = sum(name.startswith("p_") for name in names)
        whole = (*grid, 1, 1)[:3]
        again.note(_bound(compiled, whole), [named[name] for name in names], pointers)


def _bound(compiled: Any, grid: Grid) -> Callable[..., None]:
    """A launch of what was compiled, on the device of its first argument."""
    start = compiled[grid]

    def launch(*arguments: Any) -> None:
        with _on(arguments[0].device):
            start(*arguments)

    return launch


launcher: Callable[[Any, Grid, dict[str, Any], dict[str, Any]], None] = run


def launch(
    kernel: Any, grid: Grid, *, device: torch.device, warps: int, stages: int = 2, **named: Any
) -> None:
    """Launch a kernel on `device` with its arguments by name. An empty grid launches nothing."""
    if 0 in grid:
        return
    with _on(device):
        launcher(kernel, grid, named, {"num_warps": warps, "num_stages": stages})


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one: Triton launches there and not where the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def cdiv(count: int, size: int) -> int:
    """Programs of `size` that cover `count`."""
    return -(-count // size)


def next_power(count: int) -> int:
    """The least power of two that is not below `count`, at least 1."""
    return 1 << max(0, count - 1).bit_length()


def strides(name: str, axes: Iterable[str], tensor: torch.Tensor | None) -> dict[str, int]:
    """The strides of the leading axes as arguments, `name` and the axis; 0 without a tensor."""
    axes = [*axes]
    found = (0,) * len(axes) if tensor is None else tensor.stride()
    return {name + axis: step for axis, step in zip(axes, found, strict=False)}


def in_rows(x: torch.Tensor) -> torch.Tensor:
    """The tensor with its last axis contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()
