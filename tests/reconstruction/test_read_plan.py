"""Plans: many tokens in, few out, as weighted sums."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.reconstruction.read_plan import ReadPlan

SLOTS = [torch.tensor([-1, 0, 0, 1, -1, 2, 2, 2]), torch.tensor([0, -1, -1, -1, 1, -1, -1, -1])]
SHARES = [torch.tensor([9.0, 1, 3, 5, 9, 1, 2, 1]), torch.ones(8)]


def dense(slots: list[torch.Tensor], shares: list[torch.Tensor], read: int) -> torch.Tensor:
    """The plan as one matrix `[batch, read, n]` float64."""
    out = torch.zeros(len(slots), read, len(slots[0]), dtype=torch.float64)
    for row, (slot, share) in enumerate(zip(slots, shares, strict=True)):
        for column, into in enumerate(slot.tolist()):
            if into >= 0:
                out[row, into, column] = float(share[column])
    return out / out.sum(-1, keepdim=True).clamp(min=1e-300)


def test_a_plan_is_its_matrix() -> None:
    plan, matrix = ReadPlan.of(SLOTS, SHARES), dense(SLOTS, SHARES, 3)
    states = torch.randn(2, 4, 8, 5)
    expected = matrix[:, None] @ states.double()
    torch.testing.assert_close(plan.apply(states).double(), expected, rtol=1e-6, atol=1e-6)
    assert plan.mask.tolist() == [[True, True, True], [True, True, False]]
    assert (plan.apply(states)[1, :, 2] == 0).all()


def test_tokens_that_are_left_out_may_hold_anything() -> None:
    plan, states = ReadPlan.of(SLOTS, SHARES), torch.randn(2, 1, 8, 5)
    poisoned = states.clone()
    for row, slot in enumerate(SLOTS):
        poisoned[row, :, slot < 0] = torch.nan
    assert torch.equal(plan.apply(poisoned), plan.apply(states))


def test_a_token_that_is_read_alone_keeps_its_bits() -> None:
    plan, states = ReadPlan.of(SLOTS, SHARES), torch.randn(2, 1, 8, 5).to(torch.bfloat16)
    found = plan.apply(states)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[0, :, 1], states[0, :, 3])
    assert torch.equal(found[1, :, :2], states[1, :, [0, 4]])


def test_a_token_stands_at_the_centre_of_what_is_in_it() -> None:
    plan = ReadPlan.of(SLOTS, SHARES)
    positions = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 20], list(range(40, 48))])
    # 0.25 * 6 + 0.75 * 7 = 6.75; 0.25 * 10 + 0.5 * 11 + 0.25 * 20 = 13
    assert plan.places(positions).tolist() == [[7, 8, 13], [40, 44, -1]]


def test_what_is_used_and_of_which_part() -> None:
    plan = ReadPlan.of(SLOTS, SHARES)
    assert torch.equal(plan.used(8), torch.stack(SLOTS) >= 0)
    parts = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert plan.counts(parts, 2).tolist() == [[2, 1], [1, 1]]


def test_rows_are_selected_in_their_order() -> None:
    plan, rows = ReadPlan.of(SLOTS, SHARES), torch.tensor([1, 1, 0])
    states = torch.randn(2, 1, 8, 5)
    assert torch.equal(plan.select(rows).apply(states[rows]), plan.apply(states)[rows])


def test_a_plan_of_nothing() -> None:
    plan = ReadPlan.of([torch.tensor([-1, -1])], [torch.ones(2)])
    assert plan.apply(torch.randn(1, 2, 2, 3)).shape == (1, 2, 0, 3)
    assert plan.places(torch.zeros(1, 2, dtype=torch.int64)).shape == (1, 0)


@settings(deadline=None)
@given(st.data())
def test_any_plan_is_its_matrix(data: st.DataObject) -> None:
    n, read = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    slot = torch.tensor(data.draw(st.lists(st.integers(-1, read - 1), min_size=n, max_size=n)))
    used = slot[slot >= 0].unique()
    slot = torch.where(slot >= 0, torch.searchsorted(used, slot.clamp(min=0)), -1)
    share = torch.rand(n) + 0.1
    plan = ReadPlan.of([slot], [share])
    states = torch.randn(1, 2, n, 3, dtype=torch.float64)
    expected = dense([slot], [share], len(used))[:, None] @ states
    torch.testing.assert_close(plan.apply(states), expected, rtol=1e-6, atol=1e-6)
