"""The residual form: Triton's kernel, interpreted, against the specification."""

import math

import pytest
import torch

from cmr.kernels.reweave_residual import reweave_residual_paged, reweave_residual_paged_plain
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice
from tests.kernels.helpers.paged import Paged

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def specified(states: torch.Tensor, *arguments) -> torch.Tensor:
    have = states.clone()
    reweave_residual_paged_plain(have, *arguments)
    return have


def stored(hidden: int, block: int, steps: int = 3, dtype: torch.dtype = torch.float32):
    case = Paged.draw(1, 1, steps, hidden, block, dtype=dtype)
    case.spoil()
    states, store = case.query[:, 0].contiguous(), case.key_store[:, 0].contiguous()
    return case, states, (store, case.table, case.stamps, case.created, case.positions)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize(
    ("hidden", "block", "steps"), [(1, 3, 2), (60, 32, 2), (577, 5, 1), (4100, 3, 1), (576, 1, 4)]
)
def test_matches(hidden: int, block: int, steps: int, temperature: float, guarded: bool) -> None:
    _, states, where = stored(hidden, block, steps)
    weight = torch.tensor([0.3, 1.0])
    guard = torch.arange(2 * steps).view(2, steps) % 2 == 0 if guarded else None
    want = specified(states, *where, weight, temperature, guard)
    before = states.clone()
    assert reweave_residual_paged(states, *where, weight, temperature, guard) is states
    assert_close("states", states, want)
    assert not torch.equal(states, before)
    if guard is not None:
        assert torch.equal(states[~guard], before[~guard])


@pytest.mark.parametrize("dtype", FLOATS)
def test_error_is_at_most_twice_the_naive(dtype: torch.dtype) -> None:
    _, states, where = stored(576, 8, dtype=dtype)
    weight = torch.tensor([0.3, 0.7])
    store = where[0].nan_to_num(0.0)
    exact = specified(states.double(), store.double(), *where[1:], weight, 0.1, None)
    plain = specified(states, *where, weight, 0.1, None)
    reweave_residual_paged(states, *where, weight, 0.1)
    floor = 1e-6 if dtype == torch.float32 else 1e-3
    assert_error_at_most_twice("states", states, plain, exact, floor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_reads_nothing_is_left_bit_for_bit(dtype: torch.dtype) -> None:
    case, states, where = stored(60, 8, dtype=dtype)
    where[0].fill_(math.nan)
    before = states.clone()
    case.table[0] = -1
    reweave_residual_paged(states, *where, torch.tensor([0.5, 0.0]))
    case.created += 1
    reweave_residual_paged(states, *where, torch.tensor([0.5, 0.5]))
    empty = (where[0], *(x[:, :0].contiguous() for x in where[1:3]), *where[3:])
    reweave_residual_paged(states, *empty, torch.tensor([0.5, 0.5]))
    assert torch.equal(states, before)


def test_strided_states_and_no_tokens() -> None:
    _, states, where = stored(60, 8)
    weight = torch.tensor([0.3, 0.7])
    want = specified(states, *where, weight, 1.0, None)
    spread = torch.zeros(3, 2, 120)[..., ::2].transpose(0, 1)
    spread.copy_(states)
    reweave_residual_paged(spread, *where, weight)
    assert_close("states", spread, want)
    assert reweave_residual_paged(states[:, :0], *where, weight).shape == (2, 0, 60)
