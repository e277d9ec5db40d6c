"""What a store is laid out as, and tensors for it: on a device, in pinned memory, in a file."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import finalize

import torch

from cmr._fork import in_child
from cmr.errors import StoreError

_FORKS = hasattr(os, "register_at_fork")
_MAP_FIXED = 0x10  # of all systems that fork
if _FORKS:
    _LIBC = ctypes.CDLL(None, use_errno=True)
    _LIBC.mmap.restype = ctypes.c_void_p
    _place = (ctypes.c_void_p, ctypes.c_size_t)
    _LIBC.mmap.argtypes = (*_place, *[ctypes.c_int] * 3, ctypes.c_long)
    _LIBC.munmap.argtypes = _place

Allocate = Callable[[tuple[int, ...], torch.dtype, torch.device], torch.Tensor]


@dataclass(frozen=True)
class LayerShape:
    """What one target layer stores of a token, and where.

    Of hidden states there is one head as wide as the model, and a `value_dim` of 0. `rotary` says
    by which kind of rotary embedding keys are turned; None: by none.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    rotary: str | None = None

    def token_bytes(self) -> int:
        """Bytes of one token."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True)
class Lower:
    """The tiers under the first one.

    Attributes:
        working: blocks kept in host memory as they are.
        long_term: blocks kept in a file: index vectors in 8 bits with a scale each, token ids.
        long_term_states: whether keys and values (or states) are kept in the file, too.
        folder: where the file is; None: the system's place for temporary files.
    """

    working: int = 0
    long_term: int = 0
    long_term_states: bool = False
    folder: str | None = None


class Together(NamedTuple):
    """Layers whose blocks lie side by side, as heads of one layer, to be written in one go.

    Attributes:
        layers: their numbers.
        keys: `[slots, layers * heads, block_size, key_dim]`.
        values: the same of values; None where hidden states are stored.
    """

    layers: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor | None


def allocated(
    layers: Mapping[int, LayerShape], slots: int, block_size: int, allocate: Allocate
) -> list[Together]:
    """Tensors of all layers, those that are written together each as one.

    On a GPU, where a launch takes longer than what it writes, that is all that are alike; on a CPU,
    which would have to copy them side by side, each layer by itself.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for number, shape in layers.items():
        alike[shape, number if shape.device.type == "cpu" else None].append(number)

    def made(shape: LayerShape, count: int, width: int) -> torch.Tensor:
        return allocate((slots, count * shape.heads, block_size, width), shape.dtype, shape.device)

    return [
        Together(
            tuple(numbers),
            made(shape, len(numbers), shape.key_dim),
            made(shape, len(numbers), shape.value_dim) if shape.value_dim else None,
        )
        for (shape, _), numbers in alike.items()
    ]


def named(groups: Sequence[Together]) -> dict[str, torch.Tensor]:
    """Views `[slots, heads, block_size, dim]` of each layer, `keys.4`, `values.4` and so on."""
    return {
        f"{kind}.{number}": view
        for kind in ("keys", "values")
        for group in groups
        if (tensor := getattr(group, kind)) is not None
        for number, view in zip(group.layers, tensor.chunk(len(group.layers), dim=1), strict=True)
    }


def on_device(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros beside its layer."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Memory of its own, straight from the operating system: pages that are never written take
    # none, it cannot hold what somebody else left, and what it held is gone with it.
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    # By itself it would be one memory for this process and all that are forked from it.
    how = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if _FORKS else {}
    return torch.frombuffer(mmap.mmap(-1, size, **how), dtype=dtype).view(shape)


def on_host(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros in host memory, for a layer on a GPU pinned: no copy needs waiting for."""
    if device.type == "cpu":
        return on_device(shape, dtype, device)
    return torch.zeros(shape, dtype=dtype, pin_memory=True)


class OnDisk:
    """Allocates tensors in memory-mapped files of their own, in a folder (None: the system's own).

    In the child of a fork they are zeros from the first moment on, and what the parent writes is
    never seen; `renew` has to come before they are written to.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._mapped: list[_Mapped] = []

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype, _: torch.device) -> torch.Tensor:
        """A tensor of zeros; OSError where the folder has no room for it, or is none."""
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return torch.zeros(shape, dtype=dtype)
        with self._file(size) as file:
            if not _FORKS:
                mapped: Any = mmap.mmap(file.fileno(), size)
            else:
                region = _Mapped(file.fileno(), size)
                self._mapped.append(region)
                mapped = region.buffer()
        return torch.frombuffer(mapped, dtype=dtype).view(shape)

    def renew(self) -> None:
        """Put new files in the place of those that are mapped: all tensors are zeros.

        StoreError where there can be none; then it has to be called again.
        """
        for region in self._mapped:
            try:
                with self._file(region.size) as file:
                    region.put(file.fileno())
            except OSError as error:
                raise StoreError(
                    f"room for {region.size} bytes of the long-term tier expected in "
                    f"{self._folder or tempfile.gettempdir()}, got: {error.strerror}"
                ) from error

    def _file(self, size: int) -> Any:
        # The files have no name: nothing else can open them, and whatever ends the process takes
        # them away. What is to last is saved.
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by the caller)
        file.truncate(size)  # pages that are never written take no room
        return file


class _Mapped:
    """An open file in memory, at one address for as long as this lives; no descriptor is kept."""

    # `mmap.mmap` keeps one, by which a child could read the parent's file, and cannot put
    # something else in the place of what it has mapped.

    def __init__(self, fd: int, size: int) -> None:
        self.size, self._address = size, 0
        self._address = self._map(fd, mmap.MAP_SHARED)
        # Not when the interpreter ends: threads that live on may still look at it.
        finalize(self, _LIBC.munmap, self._address, size).atexit = False
        in_child(self, _Mapped.leave)

    def buffer(self) -> Any:
        """All of it as an object that tensors are made over; it keeps this alive."""
        made: Any = (ctypes.c_uint8 * self.size).from_address(self._address)
        made.mapped = self
        return made

    def put(self, fd: int) -> None:
        """Put an open file in the place of what is there."""
        self._map(fd, mmap.MAP_SHARED | _MAP_FIXED)

    def leave(self) -> None:
        """Put zeros in the place of the file, or where no memory is left for them, nothing."""
        how = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        try:
            self._map(-1, how)
        except OSError:
            self._map(-1, how, access=0)

    def _map(self, fd: int, how: int, access: int = mmap.PROT_READ | mmap.PROT_WRITE) -> int:
        found = _LIBC.mmap(self._address, self.size, access, how, fd, 0)
        if found == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(found)
