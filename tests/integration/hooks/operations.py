"""Watching what PyTorch runs: which operations, which of them allocate, which wait."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"})
"""Operations whose result the host needs before it goes on."""


class Operations(TorchDispatchMode):
    """Notes every operation that runs inside, with its arguments.

    Attributes:
        calls: the operation and its positional arguments, in order.
        allocating: names of those that return new memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []
        self.allocating: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {_storage(t) for t in tensors((args, kwargs))}
        out = func(*args, **kwargs)
        self.calls.append((func, args))
        if any(_storage(t) not in given for t in tensors(out)):
            self.allocating.append(str(func))
        return out

    @property
    def ours(self) -> list[str]:
        """Operations of this project."""
        return [f._opname for f, _ in self.calls if f.namespace == "cmr"]

    @property
    def waiting(self) -> list[str]:
        """Operations that wait for the device."""
        return [str(f) for f, _ in self.calls if f._opname in WAITS]

    @property
    def computing(self) -> list[str]:
        """Operations of PyTorch that launch something: all but views."""
        return [str(f) for f, _ in self.calls if f.namespace != "cmr" and not _is_view(f)]


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_view(func: Any) -> bool:
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(info is not None and not info.is_write for info in returned)
