"""What the benchmarks of the operations share: devices, sizes, comparing first, then timing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch

from benchmarks.ops import bandwidth
from benchmarks.shared import rows
from cmr.evaluation.machine import processor, version
from cmr.kernels.dispatch import implementation
from tests.kernels.helpers.compare import assert_close

BLOCK = 32
DTYPE = torch.bfloat16

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
SIDES = ["cmr", "plain"]

Side = Callable[[], Any]


def normal(*shape: int, device: str, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    """Random numbers, the same ones on every device."""
    return torch.randn(*shape).to(device, dtype)


def unit(*shape: int, device: str, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    """Random rows of norm 1."""
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1).to(device, dtype)


def size(*tensors: torch.Tensor | None) -> int:
    """Bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def assert_equal_outputs(
    ours: Any, other: Any, names: Iterable[str] | None = None, atol: float = 0.0, rtol: float = 1e-2
) -> None:
    """Tensors, or tuples of them, that agree within the rounding of their dtype.

    Raises:
        AssertionError: with the worst element; no time is reported then.
    """
    have, want = _tensors(ours), _tensors(other)
    assert len(have) == len(want), f"{len(have)} outputs, not {len(want)}"
    for name, a, b in zip(names or map(str, range(len(have))), have, want, strict=False):
        assert_close(name, a, b, atol=atol, rtol=rtol)


def measure(
    benchmark: Any,
    by: str,
    sides: Mapping[str, Side],
    *,
    device: str,
    moved: int,
    flops: int = 0,
    equal: Callable[[Any, Any], None] = assert_equal_outputs,
    written: Side | None = None,
    **about: Any,
) -> None:
    """Holds all sides to the first one's output, then times one of them.

    On a GPU a call counts until the device has done its work; kernels are compiled before.

    Args:
        benchmark: pytest-benchmark's fixture.
        by: the side to time.
        sides: functions by name; the first is ours.
        device: `cpu` or `cuda`.
        moved: bytes that the operation must read and write at least, whoever does it.
        flops: floating-point operations.
        equal: compares two outputs and raises.
        written: what a side that returns nothing has written; None: what it returns.
        about: shapes and whatever else a row should say.
    """
    ours, *others = sides
    with torch.inference_mode():
        wanted = _copied(_output(sides[ours], written))
        for other in others:
            equal(wanted, _output(sides[other], written))
        timed = sides[by]
        if benchmark.enabled:
            benchmark.extra_info.update(conditions(device))
        benchmark.extra_info.update(by=by, bytes=moved, flops=flops, **about)
        if device == "cuda":
            benchmark(_until_done, timed)
        else:
            timed()
            benchmark(timed)


def conditions(device: str) -> dict[str, Any]:
    """What a timing needs to be repeated, the device's measured bandwidth with it."""
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(DTYPE).removeprefix("torch."),
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": _commit(),
        "implementation": str(implementation(device)),
        "peak_gb_s": round(bandwidth.peak(device)["peak"], 2),
    }


def with_speed(about: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """GB/s and the share of the measured peak of something that took `seconds`."""
    speed = about["bytes"] / 1e9 / seconds
    return {"gb_s": round(speed, 3), "share_of_peak": round(speed / about["peak_gb_s"], 4)}


_commit = functools.cache(rows.commit)


def _until_done(timed: Side) -> Any:
    out = timed()
    torch.cuda.synchronize()
    return out


def _output(side: Side, written: Side | None) -> Any:
    value = side()
    return value if written is None else written()


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _copied(value: Any) -> list[torch.Tensor]:
    """Copies: a side that writes in place must not change what it is compared with."""
    return [tensor.clone() for tensor in _tensors(value)]
