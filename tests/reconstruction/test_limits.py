"""How many memory tokens may be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmr import ConfigError
from cmr.reconstruction.limits import Limits


@pytest.mark.parametrize(
    ("limits", "recalled", "read"),
    [
        (Limits(), 100, 100),
        (Limits(64), 100, 64),
        (Limits(64), 10, 10),
        (Limits(None, 0.29), 100, 29),  # 0.29 * 100 is 28.999... as a float
        (Limits(None, 0.25), 99, 24),
        (Limits(None, 0.01), 10, 1),
        (Limits(None, 1.0), 10, 10),
        (Limits(64, 0.5), 100, 50),
        (Limits(32, 0.5), 100, 32),
        (Limits(32, 0.5), 0, 0),
    ],
)
def test_the_smaller_limit_holds(limits: Limits, recalled: int, read: int) -> None:
    assert limits.of(recalled) == read


@given(st.integers(1, 500), st.floats(0.001, 1.0), st.integers(0, 1000))
def test_no_limit_is_ever_exceeded(most: int, ratio: float, recalled: int) -> None:
    read = Limits(most, ratio).of(recalled)
    assert read <= min(most, recalled)
    assert read <= max(1, ratio * recalled + 1e-6)
    assert (read > 0) == (recalled > 0)


@pytest.mark.parametrize("values", [(0, None), (1.5, None), (None, 0.0), (None, 1.1), (None, "1")])
def test_a_limit_out_of_its_range(values: tuple) -> None:
    with pytest.raises(ConfigError, match="expected, got"):
        Limits(*values)
