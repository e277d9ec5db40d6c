"""Reading chosen blocks: Triton's kernel, interpreted, against the specification and float64."""

import math

import numpy as np
import pytest
import torch

from cmr.kernels.attention import attention_with_lse_plain
from cmr.kernels.attention_partials import attention_partials_plain
from cmr.kernels.reweave_paged import reweave_paged
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice
from tests.kernels.helpers.paged import Paged, joint_softmax, local_attention, specified

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def compare(have, want) -> None:
    for name, a, b in zip(("out", "gate"), have, want, strict=True):
        assert_close(name, a, b)


@pytest.mark.parametrize(
    ("heads", "groups", "steps", "width", "block", "parts"),
    [
        (9, 3, 1, 64, 32, 4),
        (8, 1, 3, 80, 16, 1),
        (2, 2, 17, 96, 1, 1),
        (9, 3, 3, 100, 5, 4),
        (4, 2, 9, 128, 48, 1),
        (6, 2, 1, 256, 16, 4),
        (2, 2, 2, 64, 70, 1),
    ],
)
def test_stale_empty_and_padded_entries(heads, groups, steps, width, block, parts) -> None:
    case = Paged.draw(heads, groups, steps, width, block, parts=parts)
    case.spoil()
    compare(reweave_paged(**case.arguments()), specified(case))


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("bias", [0.0, -math.inf, math.inf])
def test_bias(bias: float, parts: int) -> None:
    case = Paged.draw(4, 2, 2, 64, 8, parts=parts)
    case.spoil()
    case.bias[0] = bias
    out, gate = reweave_paged(**case.arguments())
    compare((out, gate), specified(case))
    if bias:
        assert (gate[0] == (0 if bias < 0 else 1)).all()
    if bias < 0 and parts == 1:
        assert torch.equal(out[0], case.local_out[0, 0])


@pytest.mark.parametrize("softcap", [None, 0.9])
@pytest.mark.parametrize("rotary", [0, 16, 40])
@pytest.mark.parametrize("guarded", [False, True])
def test_rotation_softcap_and_guard(softcap, rotary, guarded) -> None:
    case = Paged.draw(4, 2, 5, 40, 8)
    case.spoil()
    if rotary:
        angles = torch.randn(1, 5, rotary).expand(2, -1, -1)
        case.turn = 1.1 * angles.cos(), 0.9 * angles.sin()
    if guarded:
        case.query_mask = torch.tensor([[False, True, False, True, True], [False] * 5])
    case.softcap = softcap
    have = reweave_paged(**case.arguments())
    compare(have, specified(case))
    if guarded:
        assert torch.equal(have[0][1], case.local_out[0, 1]) and (have[1][1] == 0).all()
        assert torch.equal(have[0][0, :, 0], case.local_out[0, 0, :, 0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("parts", [1, 4])
def test_one_joint_softmax(dtype: torch.dtype, parts: int) -> None:
    case = Paged.draw(9, 3, 2, 64, 16, dtype=dtype, parts=parts)
    case.bias.zero_()
    out, gate = reweave_paged(**case.arguments())
    want_out, want_gate = joint_softmax(case, torch.float64)
    plain_out, plain_gate = joint_softmax(case, dtype)
    floor = 1e-6 if dtype == torch.float32 else 1e-3
    assert_error_at_most_twice("out", out, plain_out, want_out, floor)
    assert_error_at_most_twice("gate", gate, plain_gate, want_gate, floor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_reads_nothing_is_left_bit_for_bit(dtype: torch.dtype) -> None:
    case = Paged.draw(4, 2, 3, 64, 8, dtype=dtype)
    case.table[0] = -1
    case.created += 1
    case.key_store.fill_(math.nan)
    case.value_store.fill_(math.nan)
    out, gate = reweave_paged(**case.arguments())
    assert torch.equal(out, case.local_out[0]) and (gate == 0).all()


def test_blind_everywhere_is_zero() -> None:
    case = Paged.draw(4, 2, 3, 64, 8, parts=3)
    case.local_out.zero_()
    case.local_lse.fill_(-math.inf)
    case.table[0] = -1
    out, gate = reweave_paged(**case.arguments())
    assert (out[0] == 0).all() and (gate[0] == 0).all() and (gate[1] == 1).all()
    compare((out, gate), specified(case))


def test_nothing_chosen_no_slots_no_tokens() -> None:
    case = Paged.draw(4, 2, 3, 64, 8)
    case.table, case.stamps = case.table[:, :0].contiguous(), case.stamps[:, :0].contiguous()
    out, gate = reweave_paged(**case.arguments())
    assert torch.equal(out, case.local_out[0]) and (gate == 0).all()
    case = Paged.draw(4, 2, 3, 64, 8)
    case.table.fill_(-1)
    case.keep_slots(0)
    out, gate = reweave_paged(**case.arguments())
    assert torch.equal(out, case.local_out[0]) and (gate == 0).all()
    case = Paged.draw(4, 2, 0, 64, 8)
    out, gate = reweave_paged(**case.arguments())
    assert out.shape == (2, 4, 0, 64) and gate.shape == (2, 4, 0)


def test_given_results_of_any_strides_and_the_same_bits() -> None:
    case = Paged.draw(6, 2, 3, 64, 8, dtype=torch.bfloat16)
    first = reweave_paged(**case.arguments())
    out = torch.empty(2, 3, 6, 128, dtype=torch.bfloat16)[..., ::2].transpose(1, 2)
    gate = torch.empty(2, 6, 3)
    have = reweave_paged(**case.arguments(), out=out, gate=gate)
    assert have[0] is out and have[1] is gate
    assert torch.equal(out, first[0]) and torch.equal(gate, first[1])


def test_decoding_is_attention_over_everything() -> None:
    """A decode step as it is run: partial local attention, then the blocks and the merge."""
    case = Paged.draw(9, 3, 1, 64, 32)
    case.bias.zero_()
    key, value = torch.randn(2, 2, 3, 516, 64)
    case.local_out, case.local_lse = torch.empty(4, 2, 9, 1, 64), torch.empty(4, 2, 9, 1)
    results = case.local_out, case.local_lse
    attention_partials_plain(case.query, key, value, None, False, 0.125, None, *results)
    have, _ = reweave_paged(**case.arguments())
    keys, values, mask = case.gathered()
    assert bool(mask.all())
    keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    want = attention_with_lse_plain(case.query.double(), keys.double(), values.double())[0]
    assert_close("out", have, want)


def test_past_two_to_the_31_elements() -> None:
    """A store of more than 2^31 elements, of which hardly a page is touched."""
    slots, block = (1 << 31) // (8 * 64) + 5, 8
    pages = torch.from_numpy(np.zeros(slots * block * 64, np.float16))
    case = Paged.draw(2, 1, 1, 64, block, dtype=torch.float16)
    want = reweave_paged(**case.arguments())
    store, count = pages.view(slots, 1, block, 64), len(case.created)
    moved = torch.where(case.table >= 0, slots - 1 - case.table, -1)
    for old in range(count):
        store[slots - 1 - old] = case.key_store[old]
    value = torch.from_numpy(np.zeros(slots * block * 64, np.float16)).view_as(store)
    created = torch.from_numpy(np.zeros(slots, np.int64))
    positions = torch.from_numpy(np.zeros((slots, block), np.int64))
    for old in range(count):
        value[slots - 1 - old] = case.value_store[old]
        created[slots - 1 - old] = case.created[old]
        positions[slots - 1 - old] = case.positions[old]
    case.key_store, case.value_store, case.table = store, value, moved
    case.created, case.positions = created, positions
    have = reweave_paged(**case.arguments())
    assert torch.equal(have[0], want[0]) and torch.equal(have[1], want[1])
    assert not torch.equal(have[0], local_attention(case))
