"""Rows in 8 bits: the nearest code, ties to even, and what the scale promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.reference.quantise import LARGEST, quantise_rows
from tests.kernels.helpers.compare import assert_close

DTYPES = [torch.int8, torch.float8_e4m3fn]


def all_codes(dtype: torch.dtype) -> torch.Tensor:
    """Every finite value of the dtype that is used, sorted, float64."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    codes = codes[codes.isfinite() & (codes.abs() <= LARGEST[dtype])]
    return codes.unique()


@settings(deadline=None, max_examples=40)
@given(
    width=st.sampled_from([1, 7, 100]),
    dtype=st.sampled_from(DTYPES),
    given_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_each_code_is_the_nearest(width, dtype, given_dtype, scale, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows = (scale * torch.randn(3, 2, width, generator=rng)).to(given_dtype)
    rows[0, 0] = 0
    codes, scales = quantise_rows(rows, dtype)
    assert codes.dtype == dtype and codes.shape == rows.shape and scales.shape == (3, 2)
    exact = rows.double()
    assert_close("scale", scales, exact.abs().amax(-1) / LARGEST[dtype], 0, 1e-6)
    assert scales[0, 0] == 0 and not codes[0, 0].float().any()
    wanted = exact / scales.double().clamp(min=1e-300).unsqueeze(-1)
    known = all_codes(dtype)
    least = (wanted.unsqueeze(-1) - known).abs().amin(-1)
    have = (wanted - codes.double()).abs()
    assert_close("distance to the code", have, least, 1e-4, 1e-4)  # the scale's own rounding
    if rows.numel() > width:
        assert codes.double().abs().amax(-1).flatten()[1:].eq(LARGEST[dtype]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_even_code(dtype: torch.dtype) -> None:
    known = all_codes(dtype)
    middles = ((known[1:] + known[:-1]) / 2).float()
    row = torch.cat([middles, torch.tensor([LARGEST[dtype]])])  # scale 1
    codes, scale = quantise_rows(row, dtype)
    assert scale == 1
    bits = codes[:-1].view(torch.uint8)
    assert (bits % 2 == 0).all()
    assert ((codes[:-1].double() == known[1:]) | (codes[:-1].double() == known[:-1])).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_survives(dtype: torch.dtype) -> None:
    known = all_codes(dtype).float()
    codes, scale = quantise_rows(known, dtype)
    assert scale == 1 and torch.equal(codes.float(), known)


def test_no_rows() -> None:
    codes, scale = quantise_rows(torch.empty(0, 5), torch.int8)
    assert codes.shape == (0, 5) and scale.shape == (0,)


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="rows: a floating-point"):
        quantise_rows(torch.ones(2, 2).int(), torch.int8)
    with pytest.raises(TypeError, match=r"torch.int8 or torch.float8_e4m3fn expected, got .*int16"):
        quantise_rows(torch.full((2, 2), math.pi), torch.int16)
