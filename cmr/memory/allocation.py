"""What a store is laid out as, and tensors for it: on a device, in pinned memory, in a file."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy
import torch

Allocate = Callable[[tuple[int, ...], torch.dtype, torch.device], torch.Tensor]


@dataclass(frozen=True)
class LayerShape:
    """What one target layer stores of a token, and where.

    Of hidden states there is one head as wide as the model, and a `value_dim` of 0.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

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


def allocated(
    layers: Mapping[int, LayerShape], slots: int, block_size: int, allocate: Allocate
) -> dict[str, torch.Tensor]:
    """Tensors `[slots, heads, block_size, dim]` of the layers, `keys.4`, `values.4` and so on."""
    named = {}
    for kind, width_of in (("keys", "key_dim"), ("values", "value_dim")):
        for number, shape in layers.items():
            width = getattr(shape, width_of)
            if width:
                size = (slots, shape.heads, block_size, width)
                named[f"{kind}.{number}"] = allocate(size, shape.dtype, shape.device)
    return named


def on_device(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros beside its layer."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Memory of its own, straight from the operating system: pages that are never written take
    # none, it cannot hold what somebody else left, and what it held is gone with it.
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)


def on_host(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros in host memory, for a layer on a GPU pinned: no copy needs waiting for."""
    if device.type == "cpu":
        return on_device(shape, dtype, device)
    return torch.zeros(shape, dtype=dtype, pin_memory=True)


def on_disk(folder: str | None) -> Allocate:
    """Tensors in memory-mapped files of their own, in a folder (None: the system's own)."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype, _: torch.device) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        # The files have no name: nothing else can open them, and whatever ends the process takes
        # them away. What is to last is saved.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(size)  # pages that are never written take no room
            mapped = numpy.memmap(file, dtype=numpy.uint8, mode="r+", shape=(size,))
        return torch.from_numpy(mapped).view(dtype).view(shape)

    return allocate
