"""Running quantiles: what a score's place among the newest ones is, and stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.memory.running_quantiles import RunningQuantiles

numbers = st.floats(-1e6, 1e6, width=32)


def filled(size: int, *pieces: torch.Tensor) -> RunningQuantiles:
    found = RunningQuantiles(1, size)
    for piece in pieces:
        found.add(piece[None])
    return found


@given(pieces=st.lists(st.lists(numbers, max_size=9), max_size=6), score=numbers)
def test_a_quantile_is_the_share_below_with_ties_counted_half(pieces, score) -> None:
    found = filled(64, *(torch.tensor(piece, dtype=torch.float32) for piece in pieces))
    known = [x for piece in pieces for x in piece]
    assert found.sample()[0].tolist() == sorted(known)
    want = sum((x < score) + (x == score) / 2 for x in known) / len(known) if known else 0.5
    assert found.quantiles(torch.tensor([score])).item() == pytest.approx(want)


def test_it_converges_to_the_distribution_that_the_scores_come_from() -> None:
    found = RunningQuantiles(1, 4096)
    for _ in range(40):
        found.add(torch.randn(1, 384).exp())
    x = torch.linspace(-2.5, 2.5, 21)
    want = 0.5 * (1 + torch.erf(x / 2**0.5))
    assert (found.quantiles(x.exp()) - want).abs().max() < 0.03
    assert (found.seen, found.held) == (40 * 384, 4096)


def test_it_follows_a_drift_and_forgets_what_is_older_than_its_sample() -> None:
    found = filled(1000, *torch.rand(10, 300))
    place = found.quantiles(torch.tensor([0.5])).item()
    assert place == pytest.approx(0.5, abs=0.06)
    seen = [place]
    for _ in range(4):
        found.add(5 + torch.rand(1, 250))
        seen.append(found.quantiles(torch.tensor([0.5])).item())
    assert seen == sorted(seen, reverse=True) and seen[-1] == 0.0
    assert found.quantiles(torch.tensor([5.5])).item() == pytest.approx(0.5, abs=0.06)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_order_of_what_comes_at_once_changes_no_bit(sizes, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = RunningQuantiles(2, 50), RunningQuantiles(2, 50)
    for size in sizes:
        scores = torch.rand(2, size, generator=generator)
        one.add(scores)
        other.add(scores[:, torch.randperm(size, generator=generator)])
    for key, tensor in one.state().items():
        assert torch.equal(tensor, other.state()[key])


def test_nothing_is_drawn_at_random() -> None:
    before = torch.get_rng_state()
    filled(50, torch.arange(200.0), torch.arange(30.0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("count", "size"), [(10_000, 100), (384, 100), (101, 100)])
def test_of_more_than_fits_an_even_sample_is_kept(count: int, size: int) -> None:
    found = filled(size, torch.arange(count, dtype=torch.float32))
    at = torch.linspace(0, count - 1, 31)
    assert (found.quantiles(at) - at / (count - 1)).abs().max() < 2.5 / size


def test_what_is_partly_overwritten_stays_an_even_sample() -> None:
    found = filled(100, torch.arange(90.0), torch.arange(1000.0, 1060.0))
    old = found.sample()[0][found.sample()[0] < 1000]
    assert len(old) == 40
    gaps = torch.cat([torch.tensor([-1.0]), old, torch.tensor([90.0])]).diff()
    assert gaps.max() <= 6  # 2.3 on average; were the lowest overwritten first, 51


def test_a_token_with_a_nan_is_not_noted_and_scores_0() -> None:
    found = RunningQuantiles(2, 10)
    found.add(torch.tensor([[1.0, torch.nan, 3.0], [1.0, 2.0, torch.nan]]))
    assert found.sample().tolist() == [[1.0], [1.0]] and found.seen == 1
    found.add(torch.full((2, 3), torch.nan))
    assert found.seen == 1
    assert found.quantiles(torch.tensor([torch.nan, 2.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("written", [3, 10, 17])
def test_a_saved_sample_goes_on_as_if_nothing_had_happened(written: int) -> None:
    found = filled(10, *torch.rand(written, 4))
    again = RunningQuantiles.from_state(found.state(), 10)
    for new in torch.rand(5, 3):
        for sample in (found, again):
            sample.add(new[None])
        assert torch.equal(found.sample(), again.sample()) and found.seen == again.seen
    assert torch.equal(found.state()["sample"], again.state()["sample"])


def test_a_saved_sample_may_be_loaded_into_a_smaller_one() -> None:
    state = filled(10, torch.arange(4.0), torch.arange(10.0, 14.0)).state()
    small = RunningQuantiles.from_state(state, 4)
    assert small.sample()[0].tolist() == [10.0, 11.0, 12.0, 13.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": None}, r"sample: float32 \[kinds, n\] expected, got nothing"),
        ({"sample": torch.zeros(3)}, r"got torch.float32 \[3\]"),
        ({"sample": torch.zeros(1, 3).long()}, r"got torch.int64 \[1, 3\]"),
        ({"sample": torch.full((1, 3), torch.nan)}, "numbers expected, got NaN"),
        ({"seen": torch.tensor([2])}, "at least the 3 kept expected, got 2"),
        ({"seen": torch.tensor(5)}, r"seen: int64 \[1\] expected, got torch.int64 \[\]"),
    ],
)
def test_what_cannot_have_been_saved_is_refused(changes: dict, message: str) -> None:
    state = {**filled(10, torch.arange(3.0)).state(), **changes}
    with pytest.raises(ValueError, match=message):
        RunningQuantiles.from_state({k: v for k, v in state.items() if v is not None})


def test_a_sample_that_was_made_in_inference_mode_goes_on_outside() -> None:
    found = RunningQuantiles(1, 5)
    with torch.inference_mode():
        found.add(torch.rand(1, 7))
    found.add(torch.full((1, 5), 9.0))
    assert found.sample().tolist() == [[9.0] * 5]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more expected, got 0 and 5"):
        RunningQuantiles(0, 5)
    with pytest.raises(ValueError, match=r"scores \[2, n\] expected, got \[3, 4\]"):
        RunningQuantiles(2).add(torch.zeros(3, 4))
