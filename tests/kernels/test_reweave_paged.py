"""reweave_paged against one joint softmax in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.attention import attention_with_lse, rotate
from cmr.kernels.attention_partials import attention_partials
from cmr.kernels.reweave_paged import reweave_paged
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice
from tests.kernels.helpers.paged import Paged, joint_softmax, local_attention, specified


@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    repeat=st.integers(1, 3),
    steps=st.sampled_from([1, 5]),
    block=st.sampled_from([1, 7, 32]),
    parts=st.sampled_from([1, 4]),
    width=st.sampled_from([8, 60]),
    spoilt=st.booleans(),
    seed=st.integers(0, 99),
)
def test_paged_equals_one_joint_softmax(
    batch, groups, repeat, steps, block, parts, width, spoilt, seed
) -> None:
    case = Paged.draw(
        groups * repeat, groups, steps, width, block, batch=batch, parts=parts, seed=seed
    )
    if spoilt:
        case.spoil()
    out, gate = reweave_paged(**case.arguments())
    for store in (case.key_store, case.value_store):
        store.nan_to_num_(0.0)  # nothing of what cannot be read may have had a part
    want, share = joint_softmax(case, torch.float64)
    assert_close("out", out, want)
    assert_close("gate", gate, share)
    nothing = ~case.mask().any(1)
    assert torch.equal(out[nothing], local_attention(case)[nothing])
    assert (gate[nothing] == 0).all()
    alike = specified(case)  # without what needs values on the host
    assert_close("traceable out", alike[0], want)
    assert_close("traceable gate", alike[1], share)


def test_a_slot_that_was_given_away_is_not_read() -> None:
    case = Paged.draw(4, 2, 3, 16, 8, batch=1)
    before = reweave_paged(**case.arguments())
    slot = int(case.table[0, 2])
    for store in (case.key_store, case.value_store):
        store[slot] = math.nan
    case.created[slot] += 1
    out, gate = reweave_paged(**case.arguments())
    assert out.isfinite().all() and not torch.equal(out, before[0])
    case.table[0, 2] = -1
    again = reweave_paged(**case.arguments())
    assert torch.equal(out, again[0]) and torch.equal(gate, again[1])


@pytest.mark.parametrize("rotary", [8, 16])
def test_paged_turns_the_query(rotary: int) -> None:
    case = Paged.draw(4, 2, 3, 16, 8, dtype=torch.bfloat16)
    angles = torch.randn(2, 3, rotary)
    case.turn = angles.cos(), angles.sin()
    have = reweave_paged(**case.arguments())
    case.query, case.turn = rotate(case.query, *case.turn), None
    want = reweave_paged(**case.arguments())
    assert torch.equal(have[0], want[0]) and torch.equal(have[1], want[1])
    first, second = case.query[..., : rotary // 2], case.query[..., rotary // 2 : rotary]
    assert not torch.equal(first, second)


def test_rotation_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])
    cos, sin = torch.tensor([[[0.5, 2.0, 3.0, 5.0]]]), torch.tensor([[[1.0, -1.0, 2.0, 0.5]]])
    want = [0.5 - 3.0, 4.0 + 4.0, 9.0 + 2.0, 20.0 + 1.0, 5.0]
    assert rotate(x, cos, sin).flatten().tolist() == want


@pytest.mark.parametrize("bias", [-math.inf, math.inf])
def test_paged_bias_of_infinity(bias: float) -> None:
    case = Paged.draw(4, 2, 3, 16, 8)
    case.bias.fill_(bias)
    out, gate = reweave_paged(**case.arguments())
    if bias < 0:
        assert torch.equal(out, case.local_out[0]) and (gate == 0).all()
    else:
        keys, values, _ = case.gathered()
        assert_close("out", out, attention_with_lse(case.query, keys, values)[0])
        assert (gate == 1).all()


def test_paged_guards_tokens_and_takes_whole_or_partial_local_attention() -> None:
    case = Paged.draw(4, 2, 3, 16, 8)
    case.query_mask = torch.tensor([[True, False, True], [False, False, False]])
    out, gate = reweave_paged(**case.arguments())
    kept = ~case.query_mask[:, None].expand(-1, 4, -1)
    assert torch.equal(out[kept], case.local_out[0][kept]) and (gate[kept] == 0).all()
    assert (gate[~kept] > 0).all()
    whole = {**case.arguments(), "local_out": case.local_out[0], "local_lse": case.local_lse[0]}
    again = reweave_paged(**whole)
    assert torch.equal(again[0], out) and torch.equal(again[1], gate)
    case.local_out, case.local_lse = torch.empty(3, 2, 4, 3, 16), torch.empty(3, 2, 4, 3)
    attention_partials(case.query, case.key, case.value, out=case.local_out, lse=case.local_lse)
    parted = reweave_paged(**case.arguments())
    assert_close("out", parted[0], out)
    assert_close("gate", parted[1], gate)


@pytest.mark.parametrize("parts", [1, 4])
def test_paged_bfloat16_error_is_at_most_twice_the_naive(parts: int) -> None:
    case = Paged.draw(9, 3, 4, 64, 32, dtype=torch.bfloat16, parts=parts)
    out, gate = reweave_paged(**case.arguments())
    want, share = joint_softmax(case, torch.float64)
    naive, naive_share = joint_softmax(case, torch.bfloat16)
    assert_error_at_most_twice("out", out, naive, want, 1e-3)
    assert_error_at_most_twice("gate", gate, naive_share, share, 1e-3)


def test_paged_with_nothing_to_read() -> None:
    for change in ("entries", "slots"):
        case = Paged.draw(4, 2, 3, 16, 8)
        if change == "entries":
            case.table, case.stamps = (x[:, :0].contiguous() for x in (case.table, case.stamps))
        else:
            case.table.fill_(-1)
            case.keep_slots(0)
        out, gate = reweave_paged(**case.arguments())
        assert torch.equal(out, case.local_out[0]) and (gate == 0).all()
    empty = Paged.draw(4, 2, 0, 16, 8)
    assert reweave_paged(**empty.arguments())[0].shape == (2, 4, 0, 16)


def test_paged_gradients_flow_to_the_query_and_the_local_attention() -> None:
    case = Paged.draw(4, 2, 3, 16, 8)
    case.spoil()
    plain = reweave_paged(**case.arguments())
    for name in ("query", "local_out", "local_lse"):
        setattr(case, name, getattr(case, name).detach().requires_grad_())
    out, gate = reweave_paged(**case.arguments())
    assert_close("out", out.detach(), plain[0])
    assert_close("gate", gate.detach(), plain[1])
    (out.square().sum() + gate.sum()).backward()
    for name in ("query", "local_out", "local_lse"):
        grad = getattr(case, name).grad
        assert grad.isfinite().all() and (grad != 0).any(), name
    with torch.no_grad():
        again = reweave_paged(**case.arguments())
    assert again[0].grad_fn is None and torch.equal(again[0], plain[0])
    with pytest.raises(ValueError, match="no gradient flows through results that are given"):
        reweave_paged(**case.arguments(), out=torch.empty(2, 4, 3, 16))


@pytest.mark.parametrize("parts", [1, 2])
def test_paged_is_a_well_formed_operation(parts: int) -> None:
    case = Paged.draw(4, 2, 3, 16, 8, parts=parts)
    case.spoil()
    arguments = case.arguments()
    arguments.pop("turn")
    query_mask, softcap = arguments.pop("query_mask"), arguments.pop("softcap")
    out, gate = torch.empty(2, 4, 3, 16), torch.empty(2, 4, 3)
    given = (*arguments.values(), None, None, query_mask, 0.25, softcap, out, gate)
    torch.library.opcheck(torch.ops.cmr.reweave_paged.default, given)


def test_paged_compiles_as_one_graph() -> None:
    case = Paged.draw(4, 2, 3, 16, 8)
    compiled = torch.compile(reweave_paged, fullgraph=True, backend="aot_eager")
    have = compiled(**case.arguments())
    want = reweave_paged(**case.arguments())
    assert torch.equal(have[0], want[0]) and torch.equal(have[1], want[1])


def test_paged_bad_input_is_named() -> None:
    case = Paged.draw(4, 2, 3, 16, 8)
    good = case.arguments()
    turned = case.value_store.transpose(0, 1).contiguous().transpose(0, 1)
    for kind, message, change in [
        (ValueError, r"table: shape \[B=2, M\]", {"table": case.table[:1]}),
        (TypeError, "table: dtype torch.int64", {"table": case.table.int()}),
        (ValueError, r"stamps: shape \[B=2, M=5\]", {"stamps": case.stamps[:, :2]}),
        (ValueError, "table: a contiguous tensor", {"table": case.table.T.contiguous().T}),
        (ValueError, r"created: shape \[slots=7\]", {"created": case.created[:3]}),
        (ValueError, r"positions: shape \[slots=7, block=8\]", {"positions": case.positions.T}),
        (TypeError, "key_store: dtype torch.float32", {"key_store": case.key_store.double()}),
        (ValueError, "value_store: strides", {"value_store": turned}),
        (TypeError, "bias: dtype torch.float32", {"bias": case.bias.double()}),
        (ValueError, r"local_lse: shape \[P=1", {"local_lse": case.local_lse[:, :1]}),
        (ValueError, "cos: an even number", {"turn": (torch.ones(2, 3, 5),) * 2}),
        (ValueError, "cos: an even number", {"turn": (torch.ones(2, 3, 18),) * 2}),
        (ValueError, r"query_mask: shape \[B=2, S=3\]", {"query_mask": torch.ones(2, 2).bool()}),
        (ValueError, "softcap: a number above 0", {"softcap": 0.0}),
        (ValueError, r"out: shape \[B=2, H=4", {"out": torch.empty(2, 4, 3, 8)}),
        (ValueError, "gate: a contiguous", {"gate": torch.empty(2, 3, 4).mT}),
    ]:
        with pytest.raises(kind, match=message):
            reweave_paged(**{**good, **change})
