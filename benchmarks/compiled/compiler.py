"""Compiles what a host function launches, exactly as it would be launched, without a GPU.

The host functions run on `meta` tensors: they pick blocks, warps and strides as on a device. Each
launch then goes through Triton's own binder, which specialises the arguments, and its compiler for
the wanted architecture.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default changes in Triton 3.10

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime.driver import driver

from cmr.kernels import again, dispatch
from cmr.kernels.gpu import _launch

FROM_DRIVER = 6
"""What a launch says of itself in front of the kernel's arguments: stream, function and so on."""


@dataclass(frozen=True)
class Launch:
    """One launch of a host function.

    Attributes:
        kernel: name of the Triton function.
        grid: programs along each axis.
        options: warps and stages.
        compiled: Triton's compiled kernel.
    """

    kernel: str
    grid: tuple[int, ...]
    options: dict[str, Any]
    compiled: Any


class _AbsentGPU:
    """What Triton's binder asks a driver for; a device number of its own for every target."""

    utils = None
    launcher_cls = None

    def __init__(self, name: str, target: _launch.Target) -> None:
        self._number = sorted(_launch.TARGETS).index(name)
        self._target = GPUTarget(target.backend, target.arch, target.warp)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@contextmanager
def pretending(name: str) -> Iterator[None]:
    """Host functions inside see the GPU `name` of `_launch.TARGETS`; Triton compiles for it."""
    target = _launch.TARGETS[name]
    before = driver._active if hasattr(driver, "_active") else None
    driver.set_active(_AbsentGPU(name, target))
    _launch.current_target = target
    try:
        yield
    finally:
        _launch.current_target = None
        if before is not None:
            driver.set_active(before)


@contextmanager
def starting(name: str, started: Callable[..., None]) -> Iterator[None]:
    """CPU tensors inside take the whole way of those of the GPU `name`, up to its driver.

    `started(compiled, grid, arguments)` is called in the driver's place: nothing is computed.
    """
    load, types = CompiledKernel._init_handles, dispatch.GPU_TYPES
    loaded = []

    def start(compiled: Any, x: int, y: int, z: int, *rest: Any) -> None:
        started(compiled, (x, y, z), rest[FROM_DRIVER:])

    def pretend(compiled: Any) -> None:
        if compiled._run is None:
            compiled._run, compiled.function = functools.partial(start, compiled), 0
            loaded.append(compiled)

    dispatch.GPU_TYPES = (*types, "cpu")
    CompiledKernel._init_handles = pretend
    _forget()
    try:
        with pretending(name):
            yield
    finally:
        CompiledKernel._init_handles, dispatch.GPU_TYPES = load, types
        _forget()
        for compiled in loaded:  # a driver that is there would find nothing to run
            compiled._run = compiled.function = None


def _forget() -> None:
    """Nothing is launched again, and which implementation runs is found out anew."""
    dispatch._resolve.cache_clear()
    again.forget()


@contextmanager
def recording() -> Iterator[list[tuple[Any, tuple[int, ...], dict[str, Any], dict[str, Any]]]]:
    """Launches inside are noted as (kernel, grid, arguments, options) and not made."""
    noted: list[tuple[Any, tuple[int, ...], dict[str, Any], dict[str, Any]]] = []
    before = _launch.launcher
    _launch.launcher = lambda *launch: noted.append(launch)
    try:
        yield noted
    finally:
        _launch.launcher = before


def compile_launches(call: Callable[[], None], name: str) -> list[Launch]:
    """Compiles every launch that `call` makes on meta tensors for the architecture `name`."""
    with pretending(name):
        with recording() as noted:
            call()
        launches = []
        for kernel, grid, named, options in noted:
            arguments = [mock(named[key]) for key in kernel.arg_names]
            compiled = kernel.warmup(*arguments, grid=grid, **options)
            launches.append(Launch(kernel.fn.__name__, grid, options, compiled))
    return launches


def mock(value: Any) -> Any:
    """A tensor as its dtype: Triton then takes it for one that is aligned to 16 bytes."""
    return value.dtype if isinstance(value, torch.Tensor) else value


TRITON = triton.__version__
