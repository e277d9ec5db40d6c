"""Cosine top-k over entries against brute force."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.cosine_topk import cosine_topk, cosine_topk_, new_partial
from cmr.kernels.reference import select
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.ring_write import inverse_norm
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice

module = importlib.import_module("cmr.kernels.cosine_topk")  # not the function of that name


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    count=st.sampled_from([0, 1, 63, 1000]),
    width=st.sampled_from([60, 100, 576]),
    k=st.sampled_from([1, 4, 70]),
    normed=st.booleans(),
    hidden=st.booleans(),
    threshold=st.sampled_from([None, -2.0, 0.05, 2.0]),
    chunk=st.sampled_from([1, 4000, 64 << 20]),
    seed=st.integers(0, 99),
)
def test_matches_brute_force(
    batch, count, width, k, normed, hidden, threshold, chunk, seed
) -> None:
    rng = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, width, generator=rng) * 7
    entries = torch.randn(count, width, generator=rng) * 3
    if normed:
        entries = F.normalize(entries, dim=-1)
    visible = torch.rand(batch, count, generator=rng) > 0.5 if hidden else None
    if hidden:
        visible[0] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk)
        scores, slots = cosine_topk(
            query, entries, None if normed else inverse_norm(entries), visible, k, threshold
        )
    assert scores.shape == slots.shape == (batch, k)
    exact = F.normalize(query.double(), dim=-1) @ F.normalize(entries.double(), dim=-1).mT
    for b in range(batch):
        allowed = torch.ones(count, dtype=torch.bool) if visible is None else visible[b].clone()
        if threshold is not None:
            allowed &= exact[b] >= threshold
        found = slots[b][slots[b] >= 0]
        taken = len(found)
        assert taken == min(k, int(allowed.sum())) == len(set(found.tolist()))
        assert allowed[found].all()
        assert (slots[b, taken:] == -1).all() and (scores[b, taken:] == -math.inf).all()
        best = exact[b][allowed].sort(descending=True).values[:taken]
        assert_close("scores", scores[b, :taken], best)
        assert_close("by slot", exact[b][found], best)


def test_bfloat16_error_is_at_most_twice_the_naive() -> None:
    entries = F.normalize(torch.randn(1000, 576), dim=-1).bfloat16()
    query = torch.randn(4, 576)
    scores, slots = cosine_topk(query, entries, None, None, 16)
    unit = F.normalize(query, dim=-1).bfloat16()
    exact = (unit.double() @ entries.double().mT).gather(1, slots)
    naive = (unit @ entries.mT).gather(1, slots)
    assert_error_at_most_twice("scores", scores, naive, exact, 0.0)


def test_ties_go_to_the_lowest_slot_every_time() -> None:
    entries = F.normalize(torch.ones(900, 60), dim=-1)
    for _ in range(5):
        assert cosine_topk(torch.ones(1, 60), entries, None, None, 3)[1].tolist() == [[0, 1, 2]]


def test_nan_and_zero_entries_never_beat_a_match() -> None:
    entries = torch.randn(6, 60)
    entries[1] = math.nan
    entries[2] = 0.0
    query = entries[4:5].clone()
    scores, slots = cosine_topk(query, entries, inverse_norm(entries), None, 6)
    assert slots[0, 0] == 4 and 1 not in slots[0].tolist() and slots[0, -1] == -1
    assert scores[0, slots[0].tolist().index(2)] == 0.0
    assert (cosine_topk(query * math.nan, entries, None, None, 2)[1] == -1).all()


def test_a_query_of_zeros_is_no_error() -> None:
    scores, slots = cosine_topk(torch.zeros(1, 8), torch.randn(3, 8), None, None, 2)
    assert scores.tolist() == [[0.0, 0.0]] and slots.tolist() == [[0, 1]]


def test_bad_input_is_named() -> None:
    query, entries = torch.zeros(1, 8), torch.zeros(3, 8)
    cases = [
        (ValueError, r"entries: shape \[N, H=8\]", (query, entries[:, :7], None, None, 1)),
        (ValueError, r"inverse_norm: shape \[N=3\]", (query, entries, torch.ones(2), None, 1)),
        (TypeError, "visible: dtype torch.bool", (query, entries, None, torch.ones(1, 3), 1)),
        (ValueError, "k: an integer of at least 1", (query, entries, None, None, 0)),
        (TypeError, "query: a floating-point", (query.int(), entries, None, None, 1)),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message):
            cosine_topk(*arguments)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 3),
    count=st.sampled_from([1, 70, 1000, 5000]),
    k=st.sampled_from([1, 4, 16]),
    levels=st.sampled_from([2, 40, 10**9]),
    many_ties=st.booleans(),
    grouped=st.booleans(),
    seed=st.integers(0, 999),
)
def test_topk_is_exact_with_ties_nan_and_infinities(
    rows, count, k, levels, many_ties, grouped, seed
) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels, (rows, count), generator=rng).float() / 7
    for value in (math.nan, math.inf, -math.inf, -0.0):
        odd = torch.rand(rows, count, generator=rng) < (seed % 3) * 0.3
        scores[odd] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "LONG_ROW", 1 if grouped else 1 << 40)
        patch.setattr(select, "MANY_SCORES", 1 << 40)
        values, slots = select.topk_lowest_slot(scores, k, many_ties)
    for b in range(rows):
        row = [(-v, n) for n, v in enumerate(scores[b].tolist()) if v > -math.inf]
        want = [n for _, n in sorted(row)[:k]]
        assert slots[b].tolist() == want + [-1] * (k - len(want))
        assert values[b, : len(want)].tolist() == scores[b, want].tolist()
        assert (values[b, len(want) :] == -math.inf).all()


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
def test_the_exact_best_are_among_the_best_by_codes(codes) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        entries, query = F.normalize(torch.randn(5000, 128), dim=-1), torch.randn(8, 128)
        coded, scale = quantise_rows(entries, codes)
        near = cosine_topk(query, coded, None, None, 64, scale=scale)[1]
        want = cosine_topk(query, entries, None, None, 16)[1]
        found = (near[:, :, None] == want[:, None]).any(1)
        assert found.double().mean() >= (1.0 if codes == torch.int8 else 0.99)


def test_the_operation_traces_and_compiles() -> None:
    query, entries = torch.randn(2, 60), torch.randn(70, 60)
    out = torch.empty(2, 5), torch.empty(2, 5, dtype=torch.int64)
    partial = new_partial(query, 2, 70, 5)
    arguments = (query, entries, torch.ones(70), torch.ones(2, 70).bool(), 0.1, None, partial, *out)
    torch.library.opcheck(cosine_topk_, arguments)
    compiled = torch.compile(cosine_topk, fullgraph=True, backend="aot_eager")
    want = cosine_topk(query, entries, None, None, 9)
    for a, b in zip(compiled(query, entries, None, None, 9), want, strict=True):
        assert torch.equal(a, b)
