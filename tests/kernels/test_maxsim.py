"""MaxSim over blocks, each stage against brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels import maxsim as module
from cmr.kernels.maxsim import block_maxima, block_maxima_
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.reference.select import topk_lowest_slot
from cmr.kernels.standardise import passages, standardise
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice


def unit(*shape, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=rng), dim=-1).to(dtype)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    tokens=st.sampled_from([1, 5]),
    blocks=st.sampled_from([0, 1, 63, 200]),
    block=st.sampled_from([1, 5, 32]),
    width=st.sampled_from([60, 100]),
    masked=st.booleans(),
    chunk=st.sampled_from([1, 3000, 64 << 20]),
    seed=st.integers(0, 99),
)
def test_block_maxima(batch, tokens, blocks, block, width, masked, chunk, seed) -> None:
    query = unit(batch, tokens, width, seed=seed)
    index = unit(blocks, block, width, seed=seed + 1)
    mask = None
    want = torch.einsum("bqh,nth->bqnt", query.double(), index.double())
    if masked:
        mask = torch.rand(blocks, block) > 0.5
        index = index.masked_fill(~mask[..., None], math.nan)
        want = want.masked_fill(~mask, -math.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk)
        have = block_maxima(query, index, mask)
    assert have.dtype == torch.float32
    assert_close("maxima", have, want.amax(-1))


@pytest.mark.parametrize("blocks", [31, 32])
def test_block_maxima_in_bfloat16(blocks) -> None:
    query = unit(2, 32, 576, dtype=torch.bfloat16)
    index = unit(blocks, 32, 576, seed=1, dtype=torch.bfloat16)
    exact = torch.einsum("bqh,nth->bqnt", query.double(), index.double()).amax(-1)
    naive = torch.einsum("bqh,nth->bqnt", query, index).amax(-1)
    have = block_maxima(query, index)
    assert_error_at_most_twice("maxima", have, naive, exact, 0.0)
    assert torch.equal(have, block_maxima(query, index))


def test_block_maxima_bounds_its_temporaries(monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 6 * 8 * 10)
    sizes = []
    real = torch.Tensor.amax

    def noted(self, *arguments, **named):
        sizes.append(self.numel() * self.element_size())
        return real(self, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "amax", noted)
    block_maxima(unit(2, 3, 16), unit(95, 8, 16, seed=1))
    assert len(sizes) == 10 and max(sizes) == 4 * 6 * 8 * 10


def test_a_stored_nan_shows_and_a_masked_one_does_not() -> None:
    index = unit(3, 4, 16)
    index[1, 2] = math.nan
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert block_maxima(unit(1, 2, 16), index, mask)[0, :, 1].isnan().all()
    mask[1, 2] = False
    assert block_maxima(unit(1, 2, 16), index, mask).isfinite().all()


def test_signed_zeros_tie_and_nan_never_wins() -> None:
    z = torch.tensor([[-0.0, 0.0, math.nan, -1.0]])
    scores, slots = topk_lowest_slot(z, 4)
    assert slots.tolist() == [[0, 1, 3, -1]]
    assert scores[0, :3].tolist() == [0.0, 0.0, -1.0]


def test_a_planted_passage_across_an_edge_is_found_first() -> None:
    index = unit(40, 8, 64, seed=3)
    query = unit(1, 6, 64, seed=4)
    index[20, 5:8] = F.normalize(query[0, :3] + 0.05 * unit(3, 64, seed=5), dim=-1)
    index[21, 0:3] = F.normalize(query[0, 3:] + 0.05 * unit(3, 64, seed=6), dim=-1)
    visible = torch.ones(1, 40, dtype=torch.bool)
    successor = torch.arange(1, 41)
    successor[-1] = -1
    z = standardise(passages(block_maxima(query, index), successor), visible)
    assert topk_lowest_slot(z.mean(1), 1)[1].tolist() == [[20]]


def test_bad_input_is_named() -> None:
    query, index = unit(1, 2, 16), unit(3, 4, 16)
    z = torch.zeros(1, 2, 3)
    cases = [
        (
            ValueError,
            r"index: shape \[N, block, H=16\]",
            lambda: block_maxima(query, unit(3, 4, 8)),
        ),
        (TypeError, "query: dtype", lambda: block_maxima(query.double(), index)),
        (
            ValueError,
            r"token_mask: shape \[N=3, block=4\]",
            lambda: block_maxima(query, index, torch.ones(3, 5, dtype=torch.bool)),
        ),
        (ValueError, "k: an integer of at least 1", lambda: topk_lowest_slot(z[0], 0)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("chunk", [1, 64 << 20])
def test_codes_sessions_positions_and_a_view(codes, chunk, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    query, index = unit(2, 3, 60), unit(9, 4, 60, seed=1)
    coded, scale = quantise_rows(index, codes)
    positions = torch.randint(-1, 2, (9, 4))
    session, sessions = torch.randint(0, 2, (9,)), torch.tensor([1, 0])
    kept = torch.full((2, 5, 12), 7.0)
    have = block_maxima(query, coded, positions, scale, session, sessions, out=kept[:, 1:4, 2:11])
    wide = coded.double() * scale.double()[..., None]
    exact = torch.einsum("bqh,nth->bqnt", query.double(), wide)
    exact = exact.masked_fill(positions < 0, -math.inf).amax(-1)
    exact = exact.masked_fill((session != sessions[:, None])[:, None], -math.inf)
    assert_close("maxima", have, exact)
    assert_close("kept", kept[:, 1:4, 2:11], exact)
    assert (kept[:, 0] == 7).all() and (kept[:, :, 11] == 7).all()


def test_a_second_look_at_candidates() -> None:
    query, index = unit(2, 3, 60), unit(9, 4, 60, seed=1)
    slots = torch.tensor([[8, -1, 0], [3, 3, 1]])
    want = block_maxima(query, index).gather(2, slots.clamp(min=0)[:, None].expand(2, 3, 3))
    want = want.masked_fill((slots < 0)[:, None], -math.inf)
    assert_close("maxima", block_maxima(query, index, slots=slots), want, 1e-6)


def test_candidates_of_other_sessions_are_not_looked_at() -> None:
    query, index = unit(2, 3, 60), unit(9, 4, 60, seed=1)
    slots, session = torch.tensor([[8, -1, 0], [3, 3, 1]]), torch.tensor([0, 1] * 4 + [1])
    have = block_maxima(query, index, None, None, session, torch.tensor([0, 1]), slots)
    free = block_maxima(query, index, slots=slots)
    assert (have[0, :, :2] == -math.inf).all() and torch.equal(have[0, :, 2], free[0, :, 2])
    assert torch.equal(have[1], free[1])


def test_the_operation_traces_and_compiles() -> None:
    query, index = unit(2, 3, 60), unit(9, 4, 60, seed=1)
    session, out = torch.zeros(9).long(), torch.empty(2, 3, 9)
    arguments = (query, index, None, None, session, torch.tensor([0, 1]), None, out)
    torch.library.opcheck(block_maxima_, arguments)
    compiled = torch.compile(block_maxima, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, index), block_maxima(query, index))
