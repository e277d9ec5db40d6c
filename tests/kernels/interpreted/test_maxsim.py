"""Block maxima: Triton's kernel, interpreted, against the specification."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.quantise import quantise_rows
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice, specified


def unit(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "blocks", "block", "hidden"),
    [(1, 9, 32, 60), (16, 7, 5, 577), (17, 3, 130, 64), (65, 5, 1, 100)],
)
def test_block_maxima(tokens: int, blocks: int, block: int, hidden: int, dtype) -> None:
    query, index = unit(2, tokens, hidden, dtype=dtype), unit(blocks, block, hidden, dtype=dtype)
    mask = torch.rand(blocks, block) > 0.3
    mask[1] = False
    index[~mask] = math.nan
    have = block_maxima(query, index, mask)
    exact = torch.einsum("bqh,nth->bqnt", query.double(), index.double())
    exact = exact.masked_fill(~mask, -math.inf).amax(-1)
    seen = mask.any(-1)
    assert (have[:, :, ~seen] == -math.inf).all()
    naive = specified(block_maxima, query, index, mask)
    assert_error_at_most_twice(
        "maxima", have[:, :, seen], naive[:, :, seen], exact[:, :, seen], 1e-7
    )
    positions = torch.where(mask, 5, -1)
    assert torch.equal(have, block_maxima(query, index, positions))


def test_another_sessions_blocks_are_not_seen() -> None:
    query, index = unit(3, 2, 64), unit(11, 32, 64)
    session = torch.tensor([0] * 4 + [1] * 5 + [-1] * 2)
    index[4:] = math.nan
    index[4:9] = unit(5, 32, 64)
    sessions = torch.tensor([0, 1, 7])
    have = block_maxima(query, index, session=session, sessions=sessions)
    want = specified(block_maxima, query, index, session=session, sessions=sessions)
    assert_close("maxima", have, want)
    assert (have[0, :, 4:] == -math.inf).all() and (have[2] == -math.inf).all()
    slots = torch.tensor([[0, 4, -1], [3, 5, 8], [1, 9, 10]])
    have = block_maxima(query, index, session=session, sessions=sessions, slots=slots)
    want = specified(block_maxima, query, index, session=session, sessions=sessions, slots=slots)
    assert_close("maxima", have, want)
    assert (have[0, :, 1:] == -math.inf).all() and (have[2] == -math.inf).all()


def test_a_stored_nan_shows_and_a_masked_one_does_not() -> None:
    index, mask = unit(5, 4, 16), torch.ones(5, 4, dtype=torch.bool)
    index[1, 2], index[3, 0] = math.nan, math.inf
    query = unit(1, 2, 16)
    have = block_maxima(query, index, mask)
    assert have[0, :, 1].isnan().all() and not have[0, :, [0, 2, 4]].isnan().any()
    assert_close("maxima", have, specified(block_maxima, query, index, mask))
    mask[1, 2] = False
    assert block_maxima(query, index, mask)[0, :, :3].isfinite().all()


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_codes(codes: torch.dtype, dtype: torch.dtype) -> None:
    query, index = unit(1, 5, 100, dtype=dtype), unit(6, 8, 100)
    index[2, 3] *= 1e-4
    coded, scale = quantise_rows(index, codes)
    have = block_maxima(query, coded, scale=scale)
    exact = torch.einsum(
        "bqh,nth->bqnt", query.double(), coded.double() * scale[..., None].double()
    ).amax(-1)
    naive = specified(block_maxima, query, coded, scale=scale)
    assert_error_at_most_twice("maxima", have, naive, exact, 1e-6)


def test_every_code_is_read_as_it_is() -> None:
    """Each of the 256 codes alone in its token: products with 1 are the code's value."""
    codes = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        index = torch.zeros(256, 1, 16, dtype=torch.uint8)
        index[:, 0, 3] = codes
        query = torch.zeros(1, 1, 16)
        query[..., 3] = 1
        have = block_maxima(query, index.view(dtype), scale=torch.ones(256, 1))
        assert_close("value", have[0, 0], codes.view(dtype).float(), 0.0, 0.0)


def test_it_writes_into_a_part_of_what_is_kept() -> None:
    query, index = unit(2, 3, 60), unit(6, 4, 60)
    kept = torch.full((2, 5, 20), 7.0)
    out = block_maxima(query, index, out=kept[:, 1:4, 4:16:2])
    assert_close("part", kept[:, 1:4, 4:16:2], specified(block_maxima, query, index))
    assert out.data_ptr() == kept[:, 1:4, 4:16:2].data_ptr()
    kept[:, 1:4, 4:16:2] = 7.0
    assert (kept == 7.0).all()


def test_a_second_look_at_candidates() -> None:
    query, index = unit(2, 3, 60, dtype=torch.bfloat16), unit(9, 4, 60, dtype=torch.bfloat16)
    mask = torch.rand(9, 4) > 0.3
    slots = torch.tensor([[8, -1, 0, 3, 3], [-1, -1, 2, 1, 7]])
    have = block_maxima(query, index, mask, slots=slots)
    whole = block_maxima(query, index, mask)
    want = whole.gather(2, slots.clamp(min=0)[:, None].expand(2, 3, 5))
    assert_close("maxima", have, want.masked_fill((slots < 0)[:, None], -math.inf), 1e-7)


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (2, 4, 1)])
def test_nothing_to_see(shape: tuple[int, int, int]) -> None:
    query, index = unit(1, 2, shape[2]), unit(*shape)
    assert_close("maxima", block_maxima(query, index), specified(block_maxima, query, index))
    assert block_maxima(query[:, :0], index).shape == (1, 0, shape[0])


def test_past_two_to_the_31_elements() -> None:
    """Pages that nobody writes cost nothing: 4 GiB and a bit, of which two blocks exist."""
    blocks, block, hidden = 4200, 512, 1024
    index = torch.from_numpy(np.zeros((blocks, block, hidden), dtype=np.int8))
    assert index.numel() > 2**31
    index[-1, -1, :64] = 3
    scale = torch.from_numpy(np.zeros((blocks, block), dtype=np.float32))
    scale[-1, -1] = 0.5
    query = unit(1, 1, hidden)
    have = block_maxima(query, index, scale=scale, slots=torch.tensor([[0, blocks - 1]]))
    want = (query[0, 0, :64].double() * 1.5).sum().clamp(min=0)
    assert_close("maxima", have[0, 0], torch.stack([torch.zeros_like(want), want]))
