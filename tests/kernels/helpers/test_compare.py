import pytest
import torch

from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice


def test_a_failure_names_element_position_ratio_and_share() -> None:
    want = torch.ones(2, 4)
    have = want.clone()
    have[1, 2] = 3.0
    with pytest.raises(AssertionError, match=r"out: worst at \(1, 2\): 3 instead of 1; .*12\.50%"):
        assert_close("out", have, want)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_must_match(value: float) -> None:
    odd = torch.tensor([1.0, value])
    assert_close("same", odd, odd.clone())
    with pytest.raises(AssertionError):
        assert_close("other", odd, torch.ones(2))
    with pytest.raises(AssertionError):
        assert_close("other", torch.ones(2), odd)


def test_twice_the_naive_error_is_the_limit() -> None:
    exact = torch.zeros(4, dtype=torch.float64)
    naive = exact + 0.1
    assert_error_at_most_twice("near", exact + 0.19, naive, exact, 0.0)
    with pytest.raises(AssertionError, match="rms"):
        assert_error_at_most_twice("far", exact + 0.21, naive, exact, 0.0)
