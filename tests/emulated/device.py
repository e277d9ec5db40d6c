"""A GPU that is not there: tensors that say they are on one, computed on the CPU and counted.

`Emulated` tensors report the device `cuda:0`, so that all code takes the way it takes on a GPU.
Every operation on them is noted with the line of the library that it came from: what launches
something, and where the host would wait for the device. It says nothing of time, and an operation
of a kernel counts once however many launches it makes.
"""

from __future__ import annotations

import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
WAITS = frozenset({
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2",
    "unique_dim", "unique_consecutive",
})  # fmt: skip
"""Operations whose result, or its size, the host needs before it goes on."""
NOTHING = frozenset({
    "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "alias",
    "_unsafe_view", "lift_fresh", "_reshape_alias", "resize_",
})  # fmt: skip
"""Operations that launch nothing, beside views."""

AROUND = ("requests/lock.py", "decoder/wrapped.py")
"""Where the library stands around the model's own forward: what runs there is the model's."""


@dataclass
class Count:
    """What was noted.

    Attributes:
        operations: those that launch something, by the line that asked for them.
        names: the same by name.
        waits: places where the host waits, by line and reason.
    """

    operations: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def launched(self) -> int:
        """How many operations launch something."""
        return self.operations.total()

    @property
    def waited(self) -> int:
        """How often the host waits."""
        return self.waits.total()

    def beyond(self, other: Count) -> str:
        """What there is more than in another count, line by line."""
        more = [
            f"{number:5} {line}"
            for mine, theirs in ((self.operations, other.operations), (self.waits, other.waits))
            for line, number in (mine - theirs).most_common()
        ]
        return "\n".join(more)


@dataclass
class Done:
    """An operation that was recorded.

    Attributes:
        call: runs it again, on the tensors that it was given.
        fresh: the tensors that it made.
        out: all that it gave.
    """

    call: Callable[[], Any]
    fresh: list[torch.Tensor]
    out: Any

    def again(self) -> None:
        """Run it, and write what it gives where it was given before."""
        new = self.call()
        kept = {id(x) for x in self.fresh}
        for before, now in zip(_tensors(self.out), _tensors(new), strict=True):
            if id(before) in kept:
                before.copy_(now)


class Recorded:
    """Stands for a CUDA graph: the same operations on the same tensors, whatever those hold by now.

    Attributes:
        result: what the recorded function gave.
    """

    def __init__(self, device: Device, function: Callable[[], Any]) -> None:
        self._device = device
        with device.recording() as self.done:
            self.result = function()

    def replay(self) -> None:
        """Run what was recorded; no Python of the recorded function runs."""
        with self._device.unseen():
            for done in self.done:
                done.again()


class Emulated(torch.Tensor):
    """A tensor whose values are on the CPU, in `held`, and whose device is `cuda:0`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Emulated:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func}: a tensor of the emulated device, outside of it")

    def __repr__(self) -> str:
        return f"Emulated({self.held})"


class _Dispatched(TorchDispatchMode):
    """Runs every operation on the CPU, wraps what it gives, and notes it."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there: list[Emulated] = []
        devices: list[torch.device] = []

        def on_the_host(value: Any) -> Any:
            if isinstance(value, Emulated):
                there.append(value)
                return value.held
            if isinstance(value, torch.device):
                devices.append(value)
                return CPU
            return value

        plain_args, plain_kwargs = _mapped(args, on_the_host), _mapped(kwargs, on_the_host)
        wanted = devices[0] if devices else None
        if not there and (wanted is None or wanted.type != "cuda"):
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        wait = _wait(name, args, kwargs, wanted, there)
        self._device.note(name, not _is_free(func, name), wait)
        out = func(*plain_args, **plain_kwargs)
        if not _is_free(func, name):
            self._device.ran(lambda: func(*plain_args, **plain_kwargs), args, out)
        if wanted is not None and wanted.type == "cpu":
            return out
        known = {id(x.held): x for x in there}  # what is changed in place is what was given

        def wrapped(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            return known[id(x)] if id(x) in known else Emulated(x)

        return _mapped(out, wrapped)


class _Called(TorchFunctionMode):
    """What PyTorch takes apart, or does for itself, before a dispatch mode sees it."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device
        tensor = torch.Tensor
        # These ask for a guard of the device, which a build of PyTorch without CUDA has not.
        self._own: dict[Any, Any] = {
            tensor.__getitem__: self._getitem,
            tensor.__setitem__: self._setitem,
            tensor.__invert__: torch.bitwise_not,
            tensor.nonzero: self._nonzero,
            tensor.contiguous: self._contiguous,
            tensor.copy_: self._copy,
            tensor.tolist: lambda x: x.cpu().tolist(),
            tensor.__int__: lambda x: int(x.item()),
            tensor.__float__: lambda x: float(x.item()),
            tensor.__index__: lambda x: int(x.item()),
            tensor.repeat_interleave: self._repeat,
            tensor.pin_memory: self._pinned,
            # Chosen by the device: one launch there, many small operations here.
            nn.functional.scaled_dot_product_attention: self._attention,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and _is_there(kwargs.get("device")):
            made = func(*args, **{**kwargs, "device": CPU})
            if made.numel():
                self._device.note("tensor", True, "values from the host")
            return Emulated(made)
        own = self._own.get(func)
        here = func is not torch.Tensor.pin_memory
        if own is None or (here and not any(isinstance(x, Emulated) for x in args[:2])):
            return func(*args, **kwargs)
        return own(*args, **kwargs)

    def _getitem(self, x: torch.Tensor, index: Any) -> torch.Tensor:
        copies = self._indexed("index", x, index)
        x_held, index_held = _held(x), self._whole(_held(index))
        with self._device.unseen():
            out = x_held[index_held]
            if copies:
                self._device.ran(lambda: x_held[index_held], (x, index), out)
        return Emulated(out) if isinstance(x, Emulated) else out

    def _whole(self, index: Any) -> Any:
        """The same with slices whose ends are numbers: the host reads those of the device."""
        if isinstance(index, tuple):
            return tuple(map(self._whole, index))
        if not isinstance(index, slice):
            return index
        ends = index.start, index.stop, index.step
        if any(isinstance(x, Emulated) for x in ends):
            self._device.note("_local_scalar_dense", True, "the end of a slice")
        with self._device.unseen():
            return slice(*(int(_held(x)) if isinstance(x, Emulated) else x for x in ends))

    def _setitem(self, x: torch.Tensor, index: Any, value: Any) -> None:
        if not self._indexed("index_put_", x, index):
            wait = None
            if isinstance(value, torch.Tensor) and value.ndim:
                wait = _across(isinstance(x, Emulated), isinstance(value, Emulated))
            self._device.note("copy_", True, wait)
        given = _held((x, index, value))
        with self._device.unseen():
            given[0][given[1]] = given[2]
            self._device.ran(lambda: operator.setitem(*given), (x, index, value), None)

    def _indexed(self, name: str, x: torch.Tensor, index: Any) -> bool:
        """Note an index; whether it is more than a view."""
        parts = list(index) if isinstance(index, tuple) else [index]
        if not any(isinstance(part, torch.Tensor | list) for part in parts):
            return False
        wait = None
        for part in parts:
            there = isinstance(part, Emulated)
            if isinstance(part, list):
                wait = "a list of the host as an index"
            elif not isinstance(part, torch.Tensor):
                continue
            elif there and part.dtype in (torch.bool, torch.uint8):
                wait = "a bool index"
            elif there and not part.ndim:
                wait = "a number of the device as an index"
            elif part.ndim and there != isinstance(x, Emulated):
                wait = "an index of the host" if not there else "an index of the device"
        self._device.note(name, True, wait)
        return True

    def _contiguous(self, x: Emulated, **kwargs: Any) -> torch.Tensor:
        return x if x.held.is_contiguous(**kwargs) else x.clone(**kwargs)

    def _copy(self, x: torch.Tensor, other: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self._device.note(
            "copy_", True, _across(isinstance(x, Emulated), isinstance(other, Emulated))
        )
        to, given = _held((x, other))
        with self._device.unseen():
            to.copy_(given)
            self._device.ran(lambda: to.copy_(given), (x, other), to)
        return x

    def _nonzero(self, x: Emulated) -> torch.Tensor:
        self._device.note("nonzero", True, "nonzero")
        with self._device.unseen():
            return Emulated(x.held.nonzero())

    def _repeat(self, x: torch.Tensor, repeats: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        size = kwargs.get("output_size")
        wait = "repeat_interleave" if isinstance(repeats, torch.Tensor) and size is None else None
        self._device.note("repeat_interleave", True, wait)
        given = _held((x, repeats, *args))
        with self._device.unseen():
            out = given[0].repeat_interleave(*given[1:], **kwargs)
            self._device.ran(lambda: given[0].repeat_interleave(*given[1:], **kwargs), args, out)
            return Emulated(out)

    def _pinned(self, x: torch.Tensor) -> torch.Tensor:
        """A copy in memory that is never moved; on a GPU it comes from a pool."""
        with self._device.unseen():
            made = x.clone()
        made.pinned = True  # type: ignore[attr-defined]
        return made

    def _attention(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._device.note("scaled_dot_product_attention", True, None)
        plain_args, plain = _held((args, kwargs))
        attend = nn.functional.scaled_dot_product_attention
        with self._device.unseen():
            out = attend(*plain_args, **plain)
            self._device.ran(lambda: attend(*plain_args, **plain), args, out)
            return Emulated(out)


class Device:
    """The emulated GPU; inside `running` tensors may be on it.

    Attributes:
        count: what was noted in the `counting` under way.
        done: what was done in the `recording` under way.
    """

    def __init__(self) -> None:
        self.count: Count | None = None
        self.done: list[Done] | None = None
        self._dispatched = _Dispatched(self)

    @contextmanager
    def running(self) -> Iterator[Device]:
        """Tensors may be made on the emulated GPU inside."""
        lazy = torch.cuda._lazy_init
        with ExitStack() as stack:
            torch.cuda._lazy_init = lambda: None
            stack.callback(setattr, torch.cuda, "_lazy_init", lazy)
            stack.enter_context(_Called(self))
            stack.enter_context(self._dispatched)
            yield self

    @contextmanager
    def counting(self) -> Iterator[Count]:
        """What runs inside is counted."""
        self.count = count = Count()
        try:
            yield count
        finally:
            self.count = None

    @contextmanager
    def recording(self) -> Iterator[list[Done]]:
        """What launches something inside is recorded; nothing may wait for the host, or ask it."""
        self.done = done = []
        try:
            yield done
        finally:
            self.done = None

    def ran(self, call: Callable[[], Any], given: Any, out: Any) -> None:
        """Take note of an operation that ran, which `call` runs again."""
        if self.done is None:
            return
        if any(not isinstance(x, Emulated) and x.ndim for x in _tensors(given)):
            raise AssertionError(f"{_line()}: a tensor of the host while a graph is recorded")
        # What is written in place, or is a view, is where it was: it is no result to be copied.
        known = {x.held.untyped_storage().data_ptr() for x in _tensors(given) if x.ndim}
        fresh = [x for x in _tensors(out) if x.untyped_storage().data_ptr() not in known]
        self.done.append(Done(call, fresh, out))

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What runs inside, on the CPU, is noted elsewhere."""
        with torch.utils._python_dispatch._disable_current_modes():
            yield

    def note(self, name: str, launches: bool, wait: str | None) -> None:
        """Take note of an operation, and of why the host waits for it; None: it does not."""
        if self.done is not None and wait is not None:
            raise AssertionError(f"{_line()}: {wait} while a graph is recorded")
        if self.count is None:
            return
        line = _line()
        if launches:
            self.count.operations[line] += 1
            self.count.names[name] += 1
        if wait is not None:
            self.count.waits[f"{line}: {wait}"] += 1


def moved(model: nn.Module) -> nn.Module:
    """The model with all its tensors on the emulated GPU; it must be running."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Emulated(parameter.data), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Emulated(buffer)
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):
                setattr(module, name, Emulated(value))
    return model


def _tensors(value: Any) -> list[Any]:
    """All tensors in nested lists, tuples and dictionaries."""
    found: list[Any] = []
    _mapped(value, lambda x: found.append(x) if isinstance(x, torch.Tensor) else None)
    return found


def _held(value: Any) -> Any:
    return _mapped(value, lambda x: x.held if isinstance(x, Emulated) else x)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested lists, tuples and dictionaries with their leaves changed."""
    if type(value) in (list, tuple):
        return type(value)([_mapped(part, change) for part in value])
    if type(value) is dict:
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple):  # what PyTorch returns by name
        return type(value)([_mapped(part, change) for part in value])
    return change(value)


def _across(to: bool, there: bool) -> str | None:
    if to == there:
        return None
    return "a copy to the host" if there else "a copy from the host"


def _wait(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wanted: torch.device | None,
    there: list[Emulated],
) -> str | None:
    """Why the host waits for an operation; None where it does not."""
    if name in WAITS:
        return name
    if name == "_to_copy" and wanted is not None and (wanted.type == "cpu") == bool(there):
        if there:
            return "a copy to the host"
        pinned = kwargs.get("non_blocking") and getattr(args[0], "pinned", False)
        return None if pinned else "a copy from the host"
    if name == "repeat_interleave" and len(args) < 2:
        return name
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            return "a bool index"
        if any(not isinstance(x, Emulated) for x in indices):
            return "an index of the host"
    return None


def _is_free(func: Any, name: str) -> bool:
    return name in NOTHING or func.namespace == "prim" or bool(getattr(func, "is_view", False))


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _line() -> str:
    """The innermost line of the library that is running, else of what called PyTorch."""
    frame, other = sys._getframe(2), "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if "/cmr/" in file and "site-packages" not in file and not file.endswith(AROUND):
            return f"cmr/{file.rpartition('/cmr/')[2]}:{frame.f_lineno}"
        if other == "?" and "/transformers/" in file:
            other = f"transformers/{file.rpartition('/transformers/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return other
