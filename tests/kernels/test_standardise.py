"""Deviations from what is usual, against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.standardise import passages, standardise, standardise_
from tests.kernels.helpers.compare import assert_close


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    tokens=st.sampled_from([1, 4]),
    blocks=st.sampled_from([0, 1, 2, 63, 300]),
    clamp=st.sampled_from([1.0, 8.0]),
    seed=st.integers(0, 99),
)
def test_standardise(batch, tokens, blocks, clamp, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    maxima = torch.randn(batch, tokens, blocks, generator=rng) * 0.1 + 0.5
    visible = torch.rand(batch, blocks, generator=rng) > 0.5
    visible[0] = False
    if blocks > 2:
        maxima[..., 2] = [math.nan, math.inf, -math.inf][seed % 3]
    have = standardise(maxima, visible, clamp)
    for b in range(batch):
        for q in range(tokens):
            row = maxima[b, q].double()
            usable = visible[b] & row.isfinite()
            want = torch.full((blocks,), -clamp, dtype=torch.float64)
            kept = row[usable].numpy()
            if len(kept) > 1:
                spread = torch.from_numpy((kept - kept.mean()) / kept.std())
                want[usable] = spread.clamp(-clamp, clamp)
            else:
                want[usable] = 0.0
            assert_close("z", have[b, q], want, 1e-3, 1e-3)


def test_equal_maxima_say_nothing() -> None:
    visible = torch.ones(1, 1000, dtype=torch.bool)
    for value in (0.1, 0.3, 0.7371, -0.9, 1e-6, 0.0):
        assert (standardise(torch.full((1, 2, 1000), value), visible) == 0).all()


def test_another_rows_blocks_do_not_change_a_rows_z() -> None:
    maxima = torch.rand(2, 3, 10)
    visible = torch.arange(10)[None] < torch.tensor([[6], [0]])
    changed = maxima.clone()
    changed[:, :, 6:] = 99.0
    z = standardise(changed, visible)
    assert torch.equal(z, standardise(maxima, visible))
    assert (z[:, :, 6:] == -8.0).all() and (z[1] == -8.0).all()


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12), data=st.data())
def test_passages(values, data) -> None:
    count = len(values)
    following = data.draw(st.lists(st.integers(-1, count - 1), min_size=count, max_size=count))
    maxima = torch.tensor(values)[None, None].repeat(2, 3, 1)
    have = passages(maxima, torch.tensor(following))
    want = [max(v, values[n]) if n >= 0 else v for v, n in zip(values, following, strict=True)]
    assert torch.equal(have, torch.tensor(want)[None, None].repeat(2, 3, 1))


def test_passages_of_nothing() -> None:
    empty = passages(torch.zeros(1, 2, 0), torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (1, 2, 0)


@pytest.mark.parametrize("clamp", [2.0, math.inf])
def test_passages_at_once(clamp: float) -> None:
    maxima, visible = torch.rand(2, 3, 50), torch.rand(2, 50) > 0.2
    successor = torch.where(torch.rand(50) > 0.3, torch.randint(0, 50, (50,)), -1)
    want = passages(standardise(maxima, visible, clamp), successor)
    assert torch.equal(standardise(maxima, visible, clamp, successor), want)


def arguments() -> tuple:
    maxima, visible = torch.rand(2, 3, 20)[:, ::2], torch.rand(2, 20) > 0.3
    return maxima, visible, torch.arange(20) - 1, 8.0, torch.empty(2, 2, 20)


def test_opcheck() -> None:
    torch.library.opcheck(standardise_, arguments())


def test_full_graph() -> None:
    maxima, visible, successor, clamp, _ = arguments()
    torch._dynamo.reset()
    compiled = torch.compile(standardise, fullgraph=True, backend="eager")
    have = compiled(maxima, visible, clamp, successor)
    assert torch.equal(have, standardise(maxima, visible, clamp, successor))


def test_bad_input_is_named() -> None:
    z, visible = torch.zeros(1, 2, 3), torch.ones(1, 3, dtype=torch.bool)
    cases = [
        (TypeError, "visible: dtype torch.bool", lambda: standardise(z, torch.ones(1, 3))),
        (TypeError, "maxima: dtype torch.float32", lambda: standardise(z.double(), visible)),
        (ValueError, "clamp: a number above 0", lambda: standardise(z, visible, 0)),
        (
            TypeError,
            "successor: dtype torch.int64",
            lambda: standardise(z, visible, successor=torch.zeros(3)),
        ),
        (TypeError, "successor: dtype torch.int64", lambda: passages(z, torch.zeros(3))),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
