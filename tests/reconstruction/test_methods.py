"""The reconstruction methods: exactly as many tokens as allowed, and the right ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr import ConfigError
from cmr.config import RECONSTRUCTION_METHODS
from cmr.reconstruction.limits import Limits
from cmr.reconstruction.methods import (
    REACH,
    allot,
    chosen,
    hierarchical,
    plan_rows,
    pooled,
    smoothed,
)


def passages(*sizes: int) -> torch.Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.mark.parametrize("method", RECONSTRUCTION_METHODS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_exactly_as_many_are_read_as_allowed(method: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    n = sum(sizes)
    most = data.draw(st.integers(1, n + 3))
    plan = plan_rows(
        method,
        torch.randn(1, n) * 3,
        passages(*sizes),
        torch.ones(1, n, dtype=torch.bool),
        Limits(most),
    )
    read = min(most, n)
    assert plan.mask.shape == (1, read) and bool(plan.mask.all())
    order = plan.members[plan.members >= 0]
    assert len(order.unique()) == len(order), "each token once"
    assert bool((plan.members[0, :, 0].diff() > 0).all()), "in the order of the text"
    torch.testing.assert_close(plan.shares.sum(-1), torch.ones(1, read))
    if method in ("attention", "recompute") or most >= n:
        assert plan.members.shape[2] == 1
    if method == "weighted_sum":
        assert len(order) == n, "every token goes into a sum"


def test_rows_are_planned_for_themselves() -> None:
    mask = torch.tensor([[True] * 12, [True] * 4 + [False] * 8, [False] * 12])
    matches = torch.randn(3, 12)
    plan = plan_rows("weighted_sum", matches, passages(4, 8), mask, Limits(5, 0.5))
    assert plan.mask.sum(-1).tolist() == [5, 2, 0]
    only = plan_rows("weighted_sum", matches[1:2], passages(4, 8), mask[1:2], Limits(5, 0.5))
    states = torch.randn(3, 1, 12, 2)
    assert torch.equal(plan.apply(states)[1:2, :, :2], only.apply(states[1:2]))


def test_whole_runs_are_chosen_around_what_matches() -> None:
    matches = torch.zeros(200)
    matches[[70, 71, 73]] = 5.0
    slot, _ = chosen(matches, passages(200), 21)
    kept = (slot >= 0).nonzero()[:, 0]
    assert kept.tolist() == list(range(61, 82))
    assert slot[kept].tolist() == list(range(21))


def test_a_run_does_not_reach_into_another_passage() -> None:
    matches = torch.zeros(60)
    matches[30] = 9.0
    slot, _ = chosen(matches, passages(30, 30), REACH)
    assert (slot >= 0).nonzero()[:, 0].tolist() == list(range(30, 30 + REACH))


def test_equal_matches_are_chosen_in_their_order() -> None:
    slot, _ = chosen(torch.zeros(50), passages(25, 25), 20)
    assert (slot >= 0).nonzero()[:, 0].tolist() == list(range(20))


def test_smoothing_is_a_weighted_mean_of_the_neighbours() -> None:
    values, where, reach = torch.randn(30), passages(11, 1, 18), 4
    expected = torch.zeros(30, dtype=torch.float64)
    for i in range(30):
        total = weights = 0.0
        for j in range(30):
            weight = 1 - abs(i - j) / (reach + 1)
            if weight > 0 and where[i] == where[j]:
                total, weights = total + weight * float(values[j]), weights + weight
        expected[i] = total / weights
    torch.testing.assert_close(
        smoothed(values, where, reach).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_half_of_a_sum_is_chosen_and_the_rest_summed_up_by_its_match() -> None:
    matches = torch.zeros(60)
    matches[24] = 9.0
    slot, share = pooled(matches, passages(50, 10), 12)
    alone = torch.bincount(slot)[slot] == 1
    assert alone.nonzero()[:, 0].tolist() == list(range(21, 27))
    groups = [slot[span].unique_consecutive() for span in (slice(21), slice(27, 50), slice(50, 60))]
    assert [len(part) for part in groups] == [2, 3, 1], "in proportion, over no edge"
    assert bool((slot.diff() >= 0).all()) and slot[-1] == 11
    torch.testing.assert_close(share, matches.exp())


def test_the_best_passage_stays_whole_and_the_others_get_coarser() -> None:
    slot, _ = hierarchical(torch.randn(64), passages(16, 16, 16, 16), 30)
    assert slot[:16].tolist() == list(range(16))
    counts = [len(slot[16 * p : 16 * p + 16].unique()) for p in range(4)]
    assert counts[0] == 16 and sum(counts) == 30
    assert counts[1] > counts[2] > counts[3] >= 1
    assert counts == [16, 8, 4, 2]


def test_a_best_passage_that_is_too_long_is_cut_where_it_matches_least() -> None:
    matches = torch.zeros(60)
    matches[20] = 6.0
    slot, _ = hierarchical(matches, passages(40, 20), 9)
    assert (slot >= 0).nonzero()[:, 0].tolist() == list(range(16, 25))


def test_more_passages_than_tokens_to_read() -> None:
    slot, _ = pooled(torch.zeros(8), passages(*[1] * 8), 3)
    assert slot.tolist() == [0, 1, 1, 1, 1, 2, 2, 2]
    slot, _ = hierarchical(torch.zeros(8), passages(*[1] * 8), 3)
    assert slot.tolist() == [0, 1, 1, 1, 1, 2, 2, 2]


@settings(deadline=None)
@given(st.data())
def test_allotment_is_by_highest_averages(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    weights = [float(data.draw(st.integers(1, 50))) for _ in sizes]
    total = data.draw(st.integers(len(sizes), sum(sizes) + 2))
    expected = [1] * len(sizes)
    for _ in range(total - len(sizes)):
        open_ = [i for i in range(len(sizes)) if expected[i] < sizes[i]]
        if open_:
            expected[max(open_, key=lambda i: (weights[i] / (expected[i] + 1), -i))] += 1
    assert allot(total, sizes, weights) == expected


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hierarchical'"):
        plan_rows("hierarchic", *[torch.zeros(0)] * 3, Limits())
