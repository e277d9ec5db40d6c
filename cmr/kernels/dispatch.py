"""Registration of the operations with PyTorch, and which implementation of them runs, and why.

A Triton kernel runs on CUDA (and ROCm) tensors where triton can be imported, the specification in
plain PyTorch everywhere else. `CMR_KERNELS=reference` or `CMR_KERNELS=triton` in the environment,
or `using(...)` in the code, asks for one of them; what cannot be met raises.

Every operation writes into tensors that the caller gives, allocates nothing and returns nothing:
the decode path runs without an allocation and a CUDA graph may capture it. The schema declares what
is changed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cmr.errors import KernelError
from cmr.kernels import ranges

logger = logging.getLogger("cmr")

VARIABLE = "CMR_KERNELS"
CHOICES = ("auto", "reference", "triton")
GPU_TYPES = ("cuda",)
"""Device types that Triton drives; ROCm builds of PyTorch call theirs `cuda` too."""

NAMESPACE = "cmr"
# Registered through a `Library` rather than the decorator `custom_op`: the same operations to
# `opcheck` and `torch.compile`, at 6 us a call instead of 60 (CPU, without gradients,
# benchmarks/results/registration.jsonl), which counts at two calls a layer and step. It is a
# module's variable because its registrations live as long as it does.
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

REGISTERED: dict[str, str] = {}
"""Name of every operation and where its Triton host function is, `module:function`."""

_asked: str | None = None


def register(schema: str, specification: Callable[..., None], host: str, span: str) -> Any:
    """Register an operation.

    Args:
        schema: in PyTorch's schema language, without the namespace; changed tensors are annotated
            `Tensor(a!)` and nothing is returned.
        specification: plain PyTorch with the schema's arguments, positional.
        host: `module:function` below `cmr.kernels.gpu` that launches the Triton kernels with the
            same arguments; imported on its first call.
        span: the NVTX range around it, one of `ranges.NAMES`.

    Returns:
        The operation, `torch.ops.cmr.<name>.default`.
    """
    assert span in ranges.NAMES, span
    name = schema.partition("(")[0]
    launch = _lazily(host)

    # PyTorch has chosen the device by the time an operation runs; which implementation is looked up
    # on each call, as `using` may have changed it since.
    def on(kind: str) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            chosen = launch if implementation(kind).name == "triton" else specification
            if ranges.annotate is None:
                chosen(*arguments)
                return
            with ranges.annotate(span):
                chosen(*arguments)

        return run

    _LIBRARY.define(schema)
    for key, kind in (("CPU", "cpu"), ("CUDA", "cuda")):
        _LIBRARY.impl(name, on(kind), key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", _nothing, lib=_LIBRARY)
    REGISTERED[name] = host
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def runs_plain(tensor: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether an operation on these tensors would do no more than call its specification.

    So it is for plain tensors on a CPU, untraced, without ranges and gradients. A public function
    may call the specification itself then, and spare the way through PyTorch's dispatcher.
    """
    # Dispatch modes, of tracers and of tests, have to see the operation and not what it is made of.
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and ranges.annotate is None
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not needs_gradient(tensor, *others)
        and implementation("cpu").name == "reference"
    )


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether a gradient is asked for with respect to any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _nothing(*_: Any) -> None:
    """The fake implementation of an operation that only writes into what it is given."""


def _lazily(host: str) -> Callable[..., None]:
    module, _, function = host.partition(":")

    # triton takes a second to import and is not needed on a CPU: it waits for the first launch.
    @functools.cache
    def load() -> Callable[..., None]:
        return getattr(importlib.import_module(f"cmr.kernels.gpu.{module}"), function)

    def launch(*arguments: Any) -> None:
        load()(*arguments)

    return launch


# -- which implementation runs -------------------------------------------------------------------


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


# Cached, as every call of an operation asks for it.
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
        if not gpu and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
            raise KernelError(
                f"the Triton kernels were asked for on device {kind!r}: a CUDA device expected, or "
                "TRITON_INTERPRET=1 to interpret them on the CPU"
            )
        return Implementation("triton", "compiled" if gpu else "interpreted, as asked for")
    if not gpu:
        return Implementation("reference", f"PyTorch: no Triton on device {kind!r}")
    if missing:
        # A GPU that computes without its kernels is worth a word; the cache makes it one.
        logger.warning("triton is not installed: the kernels run as plain PyTorch on the GPU")
        return Implementation("reference", "PyTorch: triton is not installed")
    return Implementation("triton", "compiled for the device on first use")


def _check(name: str) -> None:
    if name not in CHOICES:
        raise KernelError(f"kernels: one of {', '.join(CHOICES)} expected, got {name!r}")
