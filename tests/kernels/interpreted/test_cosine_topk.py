"""Cosine top-k: Triton's kernels, interpreted, against the specification."""

import math

import pytest
import torch
import torch.nn.functional as F

from cmr.kernels.cosine_topk import cosine_topk, unit_query
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.ring_write import inverse_norm
from tests.kernels.helpers.compare import assert_close, specified


def unit(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).to(dtype)


def assert_same(have, want, exact: torch.Tensor, atol: float = 1e-6) -> None:
    """The same scores; where slots differ, theirs are as good."""
    assert_close("scores", have[0], want[0], atol)
    taken = have[1] >= 0
    assert torch.equal(taken, want[1] >= 0) and (have[0][~taken] == -math.inf).all()
    by_slot = exact.gather(1, have[1].clamp(min=0))
    assert_close("by slot", have[0][taken], by_slot[taken], atol)
    for row in have[1]:
        assert len(set(row[row >= 0].tolist())) == int((row >= 0).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "count", "hidden", "k"), [(1, 1300, 60, 16), (3, 63, 577, 70), (17, 150, 32, 1)]
)
def test_cosine_topk(rows: int, count: int, hidden: int, k: int, dtype: torch.dtype) -> None:
    query, entries = torch.randn(rows, hidden) * 7, torch.randn(count, hidden).to(dtype)
    visible = torch.rand(rows, count) > 0.4
    visible[0, : count // 2] = True
    if rows > 1:
        visible[1] = False
    inverse = inverse_norm(entries)
    have = cosine_topk(query, entries, inverse, visible, k, -0.05)
    want = specified(cosine_topk, query, entries.float(), inverse, visible, k, -0.05)
    if dtype == torch.float32:
        exact = F.normalize(query, dim=-1) @ (entries * inverse[:, None]).t()
        assert_same(have, want, exact)
        return
    asked = unit_query(query, dtype)
    exact = (asked.double() @ entries.double().t() * inverse.double()).float()
    hidden_score = exact.masked_fill(~visible | (exact < -0.05), -math.inf)
    best = hidden_score.topk(min(k, count)).values
    assert_close("scores", have[0][:, : best.shape[1]], best, 2e-6)
    assert_same(have, have, exact, 2e-6)


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
def test_codes(codes: torch.dtype) -> None:
    query, entries = torch.randn(2, 100), unit(200, 100)
    coded, scale = quantise_rows(entries, codes)
    inverse = inverse_norm(coded.float() * scale[:, None])
    have = cosine_topk(query, coded, inverse, None, 5, scale=scale)
    asked = unit_query(query, codes).float()
    exact = asked @ (coded.float() * (scale * inverse)[:, None]).t()
    assert_same(have, specified(cosine_topk, query, coded, inverse, None, 5, scale=scale), exact)


def test_ties_go_to_the_lowest_slot_every_time() -> None:
    entries = F.normalize(torch.ones(150, 60), dim=-1)
    visible = torch.ones(1, 150, dtype=torch.bool)
    visible[0, 1] = False
    slots = cosine_topk(torch.ones(1, 60), entries, None, visible, 66)[1]
    assert slots[0].tolist() == [0, *range(2, 67)]


def test_nan_and_infinite_entries() -> None:
    entries = torch.randn(6, 60)
    entries[1], entries[2] = math.nan, 0.0
    query = entries[4:5].clone()
    have = cosine_topk(query, entries, inverse_norm(entries), None, 6)
    want = specified(cosine_topk, query, entries, inverse_norm(entries), None, 6)
    assert torch.equal(have[1], want[1])
    assert_close("scores", have[0], want[0])
    assert (cosine_topk(query * math.nan, entries, None, None, 2)[1] == -1).all()
    scores, slots = cosine_topk(torch.zeros(1, 60), entries[2:5], None, None, 2)
    assert scores.tolist() == [[0.0, 0.0]] and slots.tolist() == [[0, 1]]


def test_nothing_stored() -> None:
    scores, slots = cosine_topk(torch.randn(2, 8), torch.zeros(0, 8), None, None, 3)
    assert (slots == -1).all() and (scores == -math.inf).all()
    assert cosine_topk(torch.zeros(0, 8), torch.zeros(4, 8), None, None, 3)[0].shape == (0, 3)
