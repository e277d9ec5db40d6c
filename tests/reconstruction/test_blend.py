"""How sums enter states, and the gate that follows the match."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from torch.nn import functional as F

from cmr.reconstruction.blend import blend, expected_best, fit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["weighted_sum", "gated", "attention", "residual"])
def test_a_blend_is_its_equation(method: str, dtype: torch.dtype) -> None:
    states, recalled = torch.randn(2, 3, 8).to(dtype), torch.randn(2, 3, 8)
    weight = torch.tensor([[0.3, 0.0, 1.0], [0.5, 0.2, 0.9]])
    reads = torch.tensor([[True, True, True], [True, False, True]])
    found = blend(states, recalled, reads, method, weight)
    h, m, w = states.double(), recalled.double(), weight.double()[..., None]
    want = h + w * m if method == "residual" else (1 - w) * h + w * m
    assert found.dtype == dtype
    torch.testing.assert_close(found[reads], want.to(dtype)[reads])
    assert torch.equal(found[1, 1], states[1, 1]), "does not read"
    assert torch.equal(found[0, 1], states[0, 1]), "weight 0"


@pytest.mark.parametrize("method", ["weighted_sum", "gated", "residual"])
def test_what_cannot_be_read_changes_nothing(method: str) -> None:
    states = torch.randn(1, 3, 8)
    bad = torch.full_like(states, torch.nan)
    assert torch.equal(blend(states, bad, torch.tensor([[False]]), method, 0.3), states)
    assert torch.equal(blend(states, bad, torch.tensor([[True]]), method, 0.0), states)


def floor_of(memory: torch.Tensor) -> float:
    """The floor of one row without padding, pair by pair."""
    pairs = itertools.permutations(memory.double(), 2)
    cosine = [float(F.cosine_similarity(a, b, dim=0)) for a, b in pairs]
    deviations = math.sqrt(2 * math.log(len(memory)))
    return min(1.0, max(0.0, statistics.fmean(cosine) + deviations * statistics.pstdev(cosine)))


@pytest.mark.parametrize("hidden", [4, 40])  # fewer and more than there are tokens
def test_the_floor_is_mean_and_deviations_of_memory_with_itself(hidden: int) -> None:
    memory = torch.randn(2, 9, hidden) + 1.5
    mask = torch.tensor([[True] * 9, [True, False, True, True, False, True, False, False, False]])
    found = expected_best(memory.masked_fill(~mask[..., None], torch.nan), mask)
    for row in range(2):
        assert float(found[row]) == pytest.approx(floor_of(memory[row][mask[row]]), abs=1e-4)


def test_fewer_than_two_tokens_have_no_floor() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    assert expected_best(torch.randn(2, 2, 8), mask).tolist() == [0.0, 0.0]


def test_the_gate_is_one_for_a_copy_and_nothing_without_a_match() -> None:
    memory = torch.eye(16)[None, :8]
    mask = torch.ones(1, 8, dtype=torch.bool)
    states = torch.stack([5 * memory[0, 3], torch.eye(16)[12], -memory[0, 0]])[None]
    gate = fit(states, memory, mask, expected_best(memory, mask))
    assert gate[0, 0] == pytest.approx(1.0) and gate[0, 1:].tolist() == [0.0, 0.0]
    assert fit(states, memory, ~mask, torch.zeros(1)).tolist() == [[0.0] * 3]
    assert fit(states, memory[:, :0], mask[:, :0], torch.zeros(1)).tolist() == [[0.0] * 3]


def test_unrelated_states_of_one_narrow_cone_hardly_open_the_gate() -> None:
    torch.manual_seed(1)
    cone = 2 * torch.randn(128)
    memory, states = torch.randn(1, 100, 128) + cone, torch.randn(1, 200, 128) + cone
    mask = torch.ones(1, 100, dtype=torch.bool)
    cosine = F.normalize(states, dim=-1) @ F.normalize(memory, dim=-1).mT
    assert cosine.amax(-1).mean() > 0.8
    gate = fit(states, memory, mask, expected_best(memory, mask))
    assert gate.mean() < 0.05
    assert fit(memory, memory, mask, expected_best(memory, mask)).min() > 0.99
