"""Which implementation of the kernels runs, and why.

A Triton kernel runs on CUDA (and ROCm) tensors where triton can be imported, the specification in
plain PyTorch everywhere else. `CMR_KERNELS=reference` or `CMR_KERNELS=triton` in the environment,
or `using(...)` in the code, asks for one of them; what cannot be met raises.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cmr.errors import KernelError

logger = logging.getLogger("cmr")

VARIABLE = "CMR_KERNELS"
CHOICES = ("auto", "reference", "triton")
GPU_TYPES = ("cuda",)
"""Device types that Triton drives; ROCm builds of PyTorch call theirs `cuda` too."""

_asked: str | None = None


@dataclass(frozen=True)
class Implementation:
    """What runs on a device.

    Attributes:
        name: `triton` or `reference`.
        reason: why, in words.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def implementation(device: torch.device | str | None = None) -> Implementation:
    """Which implementation of the kernels runs on a device, and why.

    Args:
        device: a device or its name; None: the GPU where PyTorch sees one, else the CPU.

    Raises:
        KernelError: `CMR_KERNELS` or `using` asks for what cannot run there, or for what is none
            of 'auto', 'reference' and 'triton'.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    return _resolve(kind, _asked or os.environ.get(VARIABLE) or "auto")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Ask for an implementation inside a `with` block: 'auto', 'reference' or 'triton'.

    It goes before the environment's `CMR_KERNELS` and holds for all threads.

    Raises:
        KernelError: no such implementation. Whether it can run is seen when a kernel is called.
    """
    global _asked
    _check(name)
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


@functools.cache
def _resolve(kind: str, asked: str) -> Implementation:
    _check(asked)
    if asked == "reference":
        return Implementation("reference", "PyTorch, as asked for")
    gpu = kind in GPU_TYPES
    missing = importlib.util.find_spec("triton") is None
    if asked == "triton":
        if missing:
            raise KernelError("the Triton kernels were asked for, but triton is not installed")
        if not gpu and not _interpreted():
            raise KernelError(
                f"the Triton kernels were asked for on device {kind!r}: a CUDA device expected, or "
                "TRITON_INTERPRET=1 to interpret them on the CPU"
            )
        return Implementation("triton", "compiled" if gpu else "interpreted, as asked for")
    if not gpu:
        return Implementation("reference", f"PyTorch: no Triton on device {kind!r}")
    if missing:
        logger.warning("triton is not installed: the kernels run as plain PyTorch on the GPU")
        return Implementation("reference", "PyTorch: triton is not installed")
    return Implementation("triton", "compiled for the device on first use")


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _check(name: str) -> None:
    if name not in CHOICES:
        raise KernelError(f"kernels: one of {', '.join(CHOICES)} expected, got {name!r}")
