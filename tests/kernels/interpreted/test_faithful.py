"""The stricter interpreter catches what the plain one lets pass."""

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.interpreted.faithful import RaceError


@triton.jit
def copy_kernel(p_from, p_to, count, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_to + o, tl.load(p_from + o, mask=o < count).to(tl.float32), mask=o < count)


@triton.jit
def careless_kernel(p_from, p_to, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_to + o, tl.load(p_from + o))


@triton.jit
def add_kernel(p_x, p_to):
    tl.store(p_to, (tl.load(p_x) + tl.load(p_x + 1)).to(tl.float32))


@triton.jit
def clash_kernel(p_to):
    tl.store(p_to, tl.program_id(0).to(tl.float32))


@triton.jit
def neighbour_kernel(p_x):
    i = tl.program_id(0)
    tl.store(p_x + i + 1, tl.load(p_x + i))


@triton.jit
def again_kernel(p_x, p_to, BARRIER: tl.constexpr):
    o = tl.arange(0, 4)
    tl.store(p_x + o, o.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_to + o, tl.load(p_x + 3 - o))


def raises(kind: type[Exception], call) -> None:
    with pytest.raises(Exception) as caught:  # Triton wraps it
        call()
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    assert isinstance(error, kind), caught.value


@pytest.mark.parametrize("value", [1.0, -2.5, 3.0e38, 1e-40, float("inf"), float("nan")])
def test_bfloat16_round_trip(value: float) -> None:
    x = torch.tensor([value, 1.00390625, 1.01171875], dtype=torch.float32)
    narrow, wide = torch.empty(3, dtype=torch.bfloat16), torch.empty(3)

    @triton.jit
    def cast_kernel(p_x, p_to):
        o = tl.arange(0, 4)
        tl.store(p_to + o, tl.load(p_x + o, mask=o < 3).to(tl.bfloat16), mask=o < 3)

    cast_kernel[(1,)](x, narrow)
    copy_kernel[(1,)](narrow, wide, 3, BLOCK=4)
    torch.testing.assert_close(wide, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_arithmetic_on_bfloat16_raises() -> None:
    x = torch.ones(2, dtype=torch.bfloat16)
    raises(TypeError, lambda: add_kernel[(1,)](x, torch.empty(1)))


def test_an_access_outside_raises() -> None:
    raises(IndexError, lambda: careless_kernel[(2,)](torch.ones(7), torch.empty(8), BLOCK=4))
    raises(IndexError, lambda: careless_kernel[(2,)](torch.ones(8), torch.empty(7), BLOCK=4))


def test_races_raise() -> None:
    raises(RaceError, lambda: clash_kernel[(2,)](torch.empty(1)))
    raises(RaceError, lambda: neighbour_kernel[(3,)](torch.zeros(4)))
    raises(RaceError, lambda: again_kernel[(1,)](torch.zeros(4), torch.zeros(4), BARRIER=False))
    again_kernel[(1,)](torch.zeros(4), torch.zeros(4), BARRIER=True)
    clash_kernel[(1,)](torch.empty(1))
