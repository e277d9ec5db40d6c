"""Deviations from what is usual: Triton's kernel, interpreted, against the specification."""

import math

import pytest
import torch

from cmr.kernels.standardise import standardise
from tests.kernels.helpers.compare import assert_close, specified


def both(maxima: torch.Tensor, visible: torch.Tensor, clamp: float, successor) -> torch.Tensor:
    have = standardise(maxima, visible, clamp, successor)
    want = specified(standardise, maxima, visible, clamp, successor)
    assert_close("z", have, want, 2e-5, 2e-5)
    return have


@pytest.mark.parametrize("clamp", [1.5, 8.0, math.inf])
@pytest.mark.parametrize("passage", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "blocks"), [(1, 1, 1), (2, 3, 63), (3, 2, 1500)])
def test_standardise(batch, tokens, blocks, passage, clamp) -> None:
    torch.manual_seed(blocks)
    maxima = torch.randn(batch, tokens, blocks) * 0.1 + 0.5
    visible = torch.rand(batch, blocks) > 0.3
    successor = torch.where(torch.rand(blocks) > 0.2, torch.randint(0, blocks, (blocks,)), -1)
    both(maxima, visible, clamp, successor if passage else None)
    visible[0] = False
    both(maxima, visible, clamp, successor if passage else None)


def test_maxima_that_are_not_finite() -> None:
    maxima, visible = torch.rand(1, 4, 90), torch.ones(1, 90, dtype=torch.bool)
    maxima[0, 0, 5], maxima[0, 1, 6], maxima[0, 2, 7] = math.nan, -math.inf, math.inf
    maxima[0, 3] = 0.7371  # equal ones say nothing
    z = both(maxima, visible, 8.0, None)
    assert (z[0, 3] == 0).all() and z[0, 0, 5] == -8.0


def test_any_strides() -> None:
    kept = torch.rand(2, 9, 200)
    both(kept[:, 1:8:2, 10:150:3], torch.rand(2, 47) > 0.3, 8.0, None)
    both(kept[:1].transpose(1, 2), torch.rand(1, 9) > 0.3, 8.0, torch.arange(9) - 1)


def test_nothing_to_see() -> None:
    visible = torch.zeros(1, 0, dtype=torch.bool)
    assert standardise(torch.zeros(1, 2, 0), visible).shape == (1, 2, 0)
    assert standardise(torch.zeros(1, 0, 3), torch.ones(1, 3, dtype=torch.bool)).shape == (1, 0, 3)
