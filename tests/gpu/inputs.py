"""Random inputs for any device, and what a call of an operation is to the checks of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

BLOCK = 32
Inputs = dict[str, Any]
Outputs = tuple[torch.Tensor, ...]


class NotHere(Exception):
    """A check cannot be made on this device, with why."""


@dataclass(frozen=True)
class Call:
    """A call of an operation's public function.

    Attributes:
        name: of the function, and the shape.
        operation: as it is registered.
        span: the NVTX range around it.
        make: random inputs for a device, a dtype and a seed; tensors keep their shapes.
        allocate: the tensors to write into, in which case nothing else may be allocated; None:
            the function makes its results itself.
        run: the call; returns what it wrote.
        decoding: whether a decode step makes it.
        large: too slow for a test on a CPU.
        ranked: the results are the best of many: in half precision the query's rounding may swap
            neighbours, so slots are compared in float32 only, scores always.
    """

    name: str
    operation: str
    span: str
    make: Callable[[str, torch.dtype, int], Inputs]
    run: Callable[[Inputs, Any], Outputs]
    allocate: Callable[[Inputs], Any] | None = None
    decoding: bool = False
    large: bool = False
    ranked: bool = False

    def outputs(self, inputs: Inputs) -> Any:
        """Fresh tensors to write into, None where the call makes its own."""
        return None if self.allocate is None else self.allocate(inputs)


def together(name: str, calls: Sequence[Call]) -> Call:
    """Several calls as one, in their order."""
    by_number = dict(enumerate(calls))

    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        return {str(n): call.make(device, dtype, seed) for n, call in by_number.items()}

    def run(given: Inputs, out: Any) -> Outputs:
        return tuple(t for n, call in by_number.items() for t in call.run(given[str(n)], out[n]))

    return Call(
        name, "", "", make, run,
        lambda given: [call.outputs(given[str(n)]) for n, call in by_number.items()],
    )  # fmt: skip


class Maker:
    """Random tensors that depend on the seed only."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self._generator).to(self.device, dtype or self.dtype)

    def floats(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, float32."""
        return self.normal(*shape, dtype=torch.float32)

    def unit(self, *shape: int) -> torch.Tensor:
        """Rows of norm 1."""
        rows = torch.randn(*shape, generator=self._generator)
        return torch.nn.functional.normalize(rows, dim=-1).to(self.device, self.dtype)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Numbers from 0 on, below `high`."""
        return torch.randint(high, shape, generator=self._generator).to(self.device)

    def distinct(self, high: int, count: int) -> torch.Tensor:
        """`count` different numbers below `high`."""
        return torch.randperm(high, generator=self._generator)[:count].to(self.device)

    def range(self, *bounds: int) -> torch.Tensor:
        """Numbers in a row."""
        return torch.arange(*bounds, device=self.device)


def widened(inputs: Any) -> Any:
    """Nested inputs on the CPU, half-precision tensors in float32."""
    if isinstance(inputs, torch.Tensor):
        half = inputs.dtype in (torch.float16, torch.bfloat16)
        return inputs.to("cpu", torch.float32 if half else inputs.dtype)
    if isinstance(inputs, dict):
        return {name: widened(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*map(widened, inputs))
    return tuple(map(widened, inputs)) if isinstance(inputs, tuple) else inputs


def tensors(inputs: Any) -> list[torch.Tensor]:
    """All tensors of nested inputs, in a fixed order."""
    if isinstance(inputs, torch.Tensor):
        return [inputs]
    if isinstance(inputs, dict):
        inputs = tuple(inputs.values())
    return [t for value in inputs for t in tensors(value)] if isinstance(inputs, tuple) else []
