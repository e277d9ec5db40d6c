"""What has to hold of every operation on every device."""

from __future__ import annotations

import torch

from benchmarks.shared.device import device as device_of
from cmr.kernels import dispatch
from tests.gpu.inputs import Call, tensors, widened
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice

FLOOR = 2e-5
"""Allowed beside twice the error of plain PyTorch, as a share of the largest element."""


def check_against_the_specification(call: Call, device: str, dtype: torch.dtype) -> None:
    """The error is at most twice that of the specification on the same device and inputs.

    The yardstick is the specification on the CPU with float32 in place of half precision. Integers
    equal the specification's, 8-bit codes up to 1.
    """
    inputs = call.make(device, dtype, 1)
    have = call.run(inputs, call.outputs(inputs))
    with dispatch.using("reference"):
        naive = call.run(inputs, call.outputs(inputs))
        exact_inputs = widened(inputs)
        exact = call.run(exact_inputs, call.outputs(exact_inputs))
    assert len(have) == len(naive) == len(exact) > 0
    for number, (a, b, c) in enumerate(zip(have, naive, exact, strict=True)):
        name = f"{call.name}, output {number}"
        if call.ranked and not a.is_floating_point() and dtype != torch.float32:
            continue
        if not a.is_floating_point():
            # A code of eight bits may round to its neighbour.
            assert_close(name, a, b, atol=float(a.dtype.itemsize == 1), rtol=0)
            continue
        a, b, c = (t.cpu().double() for t in (a, b, c))
        finite = c.isfinite()
        assert_close(f"{name}, infinities", a[~finite], c[~finite], atol=0, rtol=0)
        if finite.any():
            floor = FLOOR * float(c[finite].abs().max())
            a, b, c = (torch.where(finite, t, 0.0) for t in (a, b, c))
            assert_error_at_most_twice(name, a, b, c, floor)


def check_repeats(call: Call, device: str, dtype: torch.dtype, times: int) -> None:
    """The same inputs give bitwise the same output, `times` times."""
    inputs = call.make(device, dtype, 2)
    first = [t.clone() for t in call.run(inputs, call.outputs(inputs))]
    out = call.outputs(inputs)
    differing = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(times):
        for a, b in zip(first, call.run(inputs, out), strict=True):
            differing += (bits(a) != bits(b)).sum()
    assert int(differing) == 0, f"{call.name}: {int(differing)} elements differ in {times} repeats"


def check_replay(call: Call, device: str, dtype: torch.dtype) -> None:
    """Captured once, a call replays on other values of its inputs as it runs on them."""
    inputs, other = call.make(device, dtype, 3), call.make(device, dtype, 4)
    wanted = [t.clone() for t in call.run(other, call.outputs(other))]
    before = [t.clone() for t in call.run(inputs, call.outputs(inputs))]
    assert any(not torch.equal(bits(a), bits(b)) for a, b in zip(before, wanted, strict=True))
    out = call.outputs(inputs)
    captured = device_of(device).captured(lambda: call.run(inputs, out))
    for old, new in zip(tensors(inputs), tensors(other), strict=True):
        old.copy_(new)
    have = captured.replay() or captured.results
    for number, (a, b) in enumerate(zip(have, wanted, strict=True)):
        assert torch.equal(bits(a), bits(b)), f"{call.name}: output {number} of the replay differs"


def check_allocates_nothing(call: Call, device: str, dtype: torch.dtype) -> None:
    """A call that is given its outputs asks the device's allocator for nothing."""
    inputs = call.make(device, dtype, 5)
    out = call.outputs(inputs)
    assert out is not None, f"{call.name} takes no outputs"
    call.run(inputs, out)
    before = allocations(device)
    call.run(inputs, out)
    assert allocations(device) == before, f"{call.name} allocates"


def allocations(device: str) -> int:
    """Allocations that PyTorch's allocator has made on a device; 0 on a CPU, which counts none."""
    if device != "cuda":
        return 0
    return torch.cuda.memory_stats()["allocation.all.allocated"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor as integers: NaN equals NaN, 0 is not -0."""
    if not tensor.is_floating_point():
        return tensor
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.dtype.itemsize])
