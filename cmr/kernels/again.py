"""Launches that were made before, made again: nothing is checked, dispatched or bound anew.

A decoding step makes two launches a layer, and to get each of them going takes the host longer than
they take a GPU. What their other arguments are, and which compiled kernel Triton takes, depends on
nothing but the layouts of their tensors and a few numbers: where those are known, so is the launch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cmr.kernels import dispatch, ranges

MOST = 1024
"""Launches of an operation that are kept; a step's differ from the last one's by its length."""

Tensors = tuple[torch.Tensor | None, ...]
_NUMBERS = frozenset({float, int, bool, type(None)})


class _Noting(threading.local):
    """What `note` is told in this thread; None where nobody wants it."""

    made: list[tuple[Callable[..., None], tuple[Any, ...], tuple[Any, ...]]] | None = None


_noting = _Noting()
_all: list[dict[tuple[Any, ...], Callable[..., None]]] = []


class Again:
    """The launches of an operation that makes one, with its tensors in front, in their order."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Callable[..., None]] = {}
        _all.append(self._made)

    def launched(self, tensors: Tensors, *numbers: float | bool | None) -> bool:
        """Launch as before; False, and nothing is done, where that was never done before."""
        key = _key(tensors, numbers) if _by_itself(tensors) else None
        launch = None if key is None else self._made.get(key)
        if launch is None:
            return False
        launch(*tensors)
        return True

    def launch(
        self,
        operation: Callable[..., None],
        arguments: tuple[Any, ...],
        tensors: Tensors,
        *numbers: float | bool | None,
    ) -> None:
        """Call an operation with arguments that were checked, so that it can be made again."""
        if not _by_itself(tensors):
            operation(*arguments)
            return
        before, _noting.made = _noting.made, []
        try:
            operation(*arguments)
            made = _noting.made
        finally:
            _noting.made = before
        # Only what was launched with these very tensors, and not with others made of them.
        if len(made) == 1 and [*map(_address, made[0][1])] == [*map(_address, tensors)]:
            start, _, rest = made[0]
            if len(self._made) >= MOST:
                self._made.clear()
            if (key := _key(tensors, numbers)) is not None:
                self._made[key] = lambda *given: start(*given, *rest)


def forget() -> None:
    """Let all launches go: each is found out anew."""
    for made in _all:
        made.clear()


def noting() -> bool:
    """Whether somebody wants to know what is launched in this thread."""
    return _noting.made is not None


def note(launch: Callable[..., None], arguments: Sequence[Any], pointers: int) -> None:
    """Say what was launched, with all arguments in their order, the first of them pointers."""
    assert _noting.made is not None
    _noting.made.append((launch, tuple(arguments[:pointers]), tuple(arguments[pointers:])))


def _address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _by_itself(tensors: Tensors) -> bool:
    """Whether an operation on these tensors would do no more than launch its kernel."""
    # As `dispatch.runs_plain`: modes and tracers have to see the operation.
    first = tensors[0]
    return (
        not torch.compiler.is_compiling()
        and type(first) is torch.Tensor
        and first.device.type in dispatch.GPU_TYPES
        and ranges.annotate is None
        # There Triton asks for the size of a storage as well, which no layout tells.
        and torch.version.hip is None
        and not torch.is_grad_enabled()
        and not torch._C._len_torch_dispatch_stack()
        and dispatch.implementation(first.device.type).name == "triton"
    )


def _key(tensors: Tensors, numbers: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """All that checks and Triton look at: layouts, dtypes, devices and alignment to 16 bytes.

    None of what is no tensor or number, which is left to the checks.
    """
    if not _NUMBERS.issuperset(map(type, numbers)):
        return None
    key: list[Any] = [*numbers]
    try:
        for x in tensors:
            if x is None:
                key.append(None)
            else:
                key += (x.shape, x.stride(), x.dtype, x.get_device(), x.data_ptr() & 15)
    except (AttributeError, RuntimeError):
        return None
    return tuple(key)
