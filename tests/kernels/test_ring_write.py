"""Writes into rows of buffers: exactly the rows named, nothing else, or nothing at all."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels import ring_write, ring_write_index
from tests.kernels.compare import assert_close


@settings(deadline=None, max_examples=40)
@given(
    slots=st.sampled_from([1, 5, 63]),
    start=st.integers(0, 62),
    count=st.integers(0, 63),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_writes_wrap_around_and_leave_other_rows(slots, start, count, dtype) -> None:
    count = min(count, slots)
    where = (torch.arange(count) + start) % slots
    keys = torch.empty(slots, 3, 4, 8, dtype=dtype)
    ids = torch.empty(slots, 4, dtype=torch.int64)
    before = keys.clone(), ids.clone()
    assert keys.isnan().all()
    new_keys, new_ids = torch.randn(count, 3, 4, 8), torch.randint(99, (count, 4))
    ring_write([keys, ids], where, [new_keys, new_ids])
    assert torch.equal(keys[where], new_keys.to(dtype)) and torch.equal(ids[where], new_ids)
    others = torch.ones(slots, dtype=torch.bool)
    others[where] = False
    assert keys[others].isnan().all() and torch.equal(ids[others], before[1][others])


@settings(deadline=None, max_examples=20)
@given(
    width=st.sampled_from([60, 100, 576]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_index_states_have_norm_one_in_the_index_dtype(width, dtype, scale, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    states = torch.randn(3, 4, width, generator=rng) * scale
    states[1, 2] = 0
    index = torch.empty(7, 4, width, dtype=dtype)
    where = torch.tensor([5, 0, 2])
    ring_write_index(index, where, states)
    want = F.normalize(states.double(), dim=-1)
    room = torch.finfo(dtype).eps
    assert_close("index", index[where], want, 1e-6, room)
    assert (index[0, 2] == 0).all()
    assert index[[1, 3, 4, 6]].isnan().all()


def test_the_buffers_stay_where_they_are() -> None:
    buffer = torch.zeros(4, 2)
    address = buffer.data_ptr()
    ring_write([buffer], torch.tensor([3]), [torch.ones(1, 2)])
    assert buffer.data_ptr() == address and buffer.sum() == 2


@pytest.mark.parametrize(
    ("kind", "message", "slots", "blocks"),
    [
        (TypeError, "slots: dtype torch.int64 expected, got torch.int32", [0], "int32"),
        (ValueError, r"blocks\[1\]: shape \[1, 2\] expected, got \[2, 2\]", [0], "rows"),
        (ValueError, "blocks: 2 tensors expected, got 1", [0], "fewer"),
        (IndexError, r"slots: numbers in 0..3 expected, got 1..4", [1, 4], "good"),
        (IndexError, r"slots: numbers in 0..3 expected, got -1..0", [-1, 0], "good"),
    ],
)
def test_a_bad_write_is_named_and_writes_nothing(kind, message, slots, blocks) -> None:
    first, second = torch.zeros(5, 2), torch.zeros(4, 2)
    where = torch.tensor(slots, dtype=torch.int32 if blocks == "int32" else torch.int64)
    good = torch.ones(len(slots), 2)
    given_blocks = {"rows": [good, torch.ones(2, 2)], "fewer": [good]}.get(blocks, [good, good])
    with pytest.raises(kind, match=message):
        ring_write([first, second], where, given_blocks)
    assert not first.any() and not second.any()


def test_index_shape_is_checked() -> None:
    with pytest.raises(ValueError, match=r"states: shape \[1, 4, 8\] expected, got \[1, 4, 7\]"):
        ring_write_index(torch.zeros(3, 4, 8), torch.tensor([0]), torch.zeros(1, 4, 7))
