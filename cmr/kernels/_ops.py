"""Registration of the operations with PyTorch, so that they dispatch, trace and compile.

Every operation writes into tensors that the caller gives, allocates nothing and returns nothing:
the decode path runs without an allocation and a CUDA graph may capture it. The schema declares what
is changed.

They are registered through `torch.library.Library` rather than the decorator `custom_op`: the same
operations to `opcheck` and `torch.compile`, at 6 us a call instead of 60 (CPU, without gradients,
`benchmarks/results/registration.jsonl`), which counts at two calls a layer and step.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from cmr.kernels import ranges
from cmr.kernels.dispatch import implementation

NAMESPACE = "cmr"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # keeps the registrations alive

REGISTERED: dict[str, str] = {}
"""Name of every operation and where its Triton host function is, `module:function`."""


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
    name = schema.partition("(")[0]
    launch = _lazily(host)

    def on(kind: str) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            chosen = launch if implementation(kind).name == "triton" else specification
            if ranges.annotate is None:
                chosen(*arguments)
                return
            with ranges.annotate(span):
                chosen(*arguments)

        return run

    assert span in ranges.NAMES, span

    _LIBRARY.define(schema)
    for key, kind in (("CPU", "cpu"), ("CUDA", "cuda")):
        _LIBRARY.impl(name, on(kind), key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", _nothing, lib=_LIBRARY)
    REGISTERED[name] = host
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def runs_plain(tensor: torch.Tensor) -> bool:
    """Whether an operation on `tensor` would only copy what its specification returns.

    So it is for plain tensors on a CPU, untraced and without ranges: a public function whose caller
    gave no place for the result may then return the specification's.
    """
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and ranges.annotate is None
        and not torch.compiler.is_compiling()
        and implementation(tensor.device).name == "reference"
    )


def _nothing(*_: Any) -> None:
    """The fake implementation of an operation that only writes into what it is given."""


def _lazily(host: str) -> Callable[..., None]:
    module, _, function = host.partition(":")

    @functools.cache
    def load() -> Callable[..., None]:
        return getattr(importlib.import_module(f"cmr.kernels.gpu.{module}"), function)

    def launch(*arguments: Any) -> None:
        load()(*arguments)

    return launch
