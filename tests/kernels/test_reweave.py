"""reweave_attention against one joint softmax in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.attention import attention_with_lse
from cmr.kernels.reweave import reweave_attention
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice


def make(batch, groups, repeat, steps, entries, length, width, seed, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=rng).to(dtype)

    query = draw(batch, groups * repeat, steps, width)
    memory = draw(batch, groups, entries, width), draw(batch, groups, entries, width)
    local = draw(batch, groups, length, width), draw(batch, groups, length, width)
    return query, memory, local


def joint(query, memory, local, added):
    """One float64 softmax over [memory, local]; `added` [B, S, M] goes onto the memory's logits."""
    repeat = query.shape[1] // memory[0].shape[1]
    keys = torch.cat([memory[0], local[0]], 2).double().repeat_interleave(repeat, 1)
    values = torch.cat([memory[1], local[1]], 2).double().repeat_interleave(repeat, 1)
    logits = query.double() @ keys.mT * query.shape[-1] ** -0.5
    entries = memory[0].shape[2]
    logits[..., :entries] += added.double()[:, None]
    shares = torch.softmax(logits, -1)
    return shares @ values, shares[..., :entries].sum(-1)


@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    repeat=st.integers(1, 3),
    steps=st.sampled_from([1, 5]),
    entries=st.sampled_from([1, 7, 63]),
    width=st.sampled_from([8, 60]),
    mask_kind=st.sampled_from(["none", "row", "token", "guard"]),
    bias_kind=st.sampled_from(["zero", "number", "scalar", "row", "entry"]),
    seed=st.integers(0, 99),
)
def test_equals_one_joint_softmax_with_the_bias_on_memory(
    batch, groups, repeat, steps, entries, width, mask_kind, bias_kind, seed
) -> None:
    query, memory, local = make(batch, groups, repeat, steps, entries, 11, width, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    mask = query_mask = None
    seen = torch.ones(batch, steps, entries, dtype=torch.bool)
    if mask_kind == "row":
        mask = torch.rand(batch, entries, generator=rng) > 0.5
        mask[0] = False
        seen = mask[:, None].expand(-1, steps, -1)
    elif mask_kind == "token":
        mask = seen = torch.rand(batch, steps, entries, generator=rng) > 0.5
    elif mask_kind == "guard":
        query_mask = torch.rand(batch, steps, generator=rng) > 0.5
        seen = query_mask[:, :, None].expand(-1, -1, entries)
    bias = {
        "zero": 0.0,
        "number": 1.7,
        "scalar": torch.tensor(-0.4),
        "row": torch.randn(batch, generator=rng),
        "entry": torch.randn(batch, entries, generator=rng),
    }[bias_kind]
    spread = torch.as_tensor(bias)
    spread = spread[:, None, None] if spread.dim() == 1 else spread
    spread = spread[:, None] if spread.dim() == 2 else spread
    added = spread.expand(batch, steps, entries).masked_fill(~seen, -math.inf)
    local_out, local_lse = attention_with_lse(query, *local)
    out, gate = reweave_attention(
        query, *memory, mask, local_out, local_lse, bias, query_mask=query_mask
    )
    want, share = joint(query, memory, local, added)
    assert_close("out", out, want)
    assert_close("gate", gate, share)
    nothing = ~seen.any(-1)[:, None].expand(-1, out.shape[1], -1)
    assert torch.equal(out[nothing], local_out[nothing]) and (gate[nothing] == 0).all()


@pytest.mark.parametrize("off", [-math.inf, torch.tensor(-math.inf), torch.full((2,), -math.inf)])
def test_a_bias_of_minus_infinity_is_off_bit_for_bit(off) -> None:
    query, memory, local = make(2, 2, 2, 3, 9, 5, 16, 0, torch.bfloat16)
    local_out, local_lse = attention_with_lse(query, *local)
    out, gate = reweave_attention(query, *memory, None, local_out, local_lse, off)
    assert torch.equal(out, local_out) and (gate == 0).all()


def test_off_and_blind_is_zero_not_nan() -> None:
    query, memory, local = make(2, 2, 2, 3, 9, 5, 16, 0)
    local_out, local_lse = attention_with_lse(query, *local, torch.zeros(3, 5, dtype=torch.bool))
    off = torch.full((2,), -math.inf)
    out, gate = reweave_attention(query, *memory, None, local_out, local_lse, off)
    assert (out == 0).all() and (gate == 0).all()


def test_a_bias_of_plus_infinity_is_memory_alone() -> None:
    query, memory, local = make(2, 2, 2, 3, 9, 5, 16, 0)
    local_out, local_lse = attention_with_lse(query, *local)
    out, gate = reweave_attention(query, *memory, None, local_out, local_lse, math.inf)
    assert_close("out", out, attention_with_lse(query, *memory)[0])
    assert (gate == 1).all()


def test_where_nothing_is_seen_locally_memory_alone_counts() -> None:
    query, memory, local = make(1, 2, 2, 3, 9, 5, 16, 0)
    local_out, local_lse = attention_with_lse(query, *local, torch.zeros(3, 5, dtype=torch.bool))
    out, gate = reweave_attention(query, *memory, None, local_out, local_lse)
    assert_close("out", out, attention_with_lse(query, *memory)[0])
    assert (gate == 1).all()


def test_nothing_seen_anywhere_stays_zero() -> None:
    query, memory, local = make(1, 2, 2, 3, 9, 5, 16, 0)
    local_out, local_lse = attention_with_lse(query, *local, torch.zeros(3, 5, dtype=torch.bool))
    hidden = torch.zeros(1, 9, dtype=torch.bool)
    out, gate = reweave_attention(query, *memory, hidden, local_out, local_lse)
    assert (out == 0).all() and (gate == 0).all()


def test_a_mask_as_bias_hides_the_same_entries() -> None:
    query, memory, local = make(2, 2, 2, 3, 9, 5, 16, 2, torch.bfloat16)
    local_out, local_lse = attention_with_lse(query, *local)
    mask = torch.arange(9)[None] < torch.tensor([[4], [0]])
    bias = torch.zeros(2, 9).masked_fill(~mask, -math.inf)
    out, gate = reweave_attention(query, *memory, mask, local_out, local_lse)
    again, gate_again = reweave_attention(query, *memory, None, local_out, local_lse, bias)
    assert torch.equal(out, again) and torch.equal(gate, gate_again)


def test_empty_memory_returns_the_local_attention() -> None:
    query, memory, local = make(2, 2, 2, 3, 0, 5, 16, 0, torch.bfloat16)
    local_out, local_lse = attention_with_lse(query, *local)
    mask = torch.zeros(2, 0, dtype=torch.bool)
    out, gate = reweave_attention(query, *memory, mask, local_out, local_lse)
    assert torch.equal(out, local_out) and (gate == 0).all()


def test_softcap_applies_before_the_bias() -> None:
    query, memory, local = make(1, 2, 2, 3, 9, 5, 16, 0)
    local_out, local_lse = attention_with_lse(query, *local, softcap=1.5)
    out, _ = reweave_attention(query, *memory, None, local_out, local_lse, 2.0, softcap=1.5)
    keys, values = (torch.cat(pair, 2) for pair in zip(memory, local, strict=True))
    shift = torch.zeros(1, 1, 3, 14)
    shift[..., :9] = 2.0
    assert_close("out", out, attention_with_lse(query, keys, values, shift, softcap=1.5)[0])


@pytest.mark.parametrize("steps", [1, 32])
@pytest.mark.parametrize("entries", [63, 512])
def test_bfloat16_error_is_at_most_twice_the_naive(steps, entries) -> None:
    query, memory, local = make(2, 3, 3, steps, entries, 200, 64, 1, torch.bfloat16)
    local_out, local_lse = attention_with_lse(query, *local)
    out, gate = reweave_attention(query, *memory, None, local_out, local_lse, 2.0)
    want, share = joint(query, memory, local, torch.full((2, steps, entries), 2.0))
    keys, values = (
        torch.cat(pair, 2).repeat_interleave(3, 1) for pair in zip(memory, local, strict=True)
    )
    logits = query @ keys.mT * 64**-0.5
    logits[..., :entries] += 2.0
    shares = torch.softmax(logits, -1)
    assert_error_at_most_twice("out", out, shares @ values, want, 1e-3)
    assert_error_at_most_twice("gate", gate, shares[..., :entries].sum(-1), share, 1e-3)


def test_rows_of_a_batch_equal_single_rows_and_repeat_exactly() -> None:
    query, memory, local = make(3, 2, 2, 4, 20, 6, 16, 5, torch.bfloat16)
    mask = torch.arange(20)[None] < torch.tensor([[20], [0], [7]])
    local_out, local_lse = attention_with_lse(query, *local)
    out, gate = reweave_attention(query, *memory, mask, local_out, local_lse, 1.0)
    for row in range(3):
        one = slice(row, row + 1)
        alone, gate_alone = reweave_attention(
            query[one],
            memory[0][one],
            memory[1][one],
            mask[one],
            local_out[one],
            local_lse[one],
            1.0,
        )
        assert torch.equal(alone, out[one]) and torch.equal(gate_alone, gate[one])
    again = reweave_attention(query, *memory, mask, local_out, local_lse, 1.0)
    assert torch.equal(again[0], out) and torch.equal(again[1], gate)


def test_bad_input_is_named() -> None:
    query, memory, local = make(2, 2, 2, 3, 9, 5, 16, 0)
    local_out, local_lse = attention_with_lse(query, *local)
    good = {
        "query": query,
        "mem_keys": memory[0],
        "mem_values": memory[1],
        "mem_mask": None,
        "local_out": local_out,
        "local_lse": local_lse,
    }
    for kind, message, change in [
        (ValueError, r"mem_values: shape \[B=2, G=2, M=9", {"mem_values": memory[1][:, :, :8]}),
        (TypeError, "mem_keys: dtype torch.float32", {"mem_keys": memory[0].double()}),
        (TypeError, "mem_mask: dtype torch.bool", {"mem_mask": torch.ones(2, 9)}),
        (ValueError, r"mem_mask: shape \[B=2, M=9\]", {"mem_mask": torch.ones(2, 8).bool()}),
        (ValueError, r"local_lse: shape \[B=2, H=4, S=3\]", {"local_lse": local_lse[..., :2]}),
        (ValueError, r"bias: a number or shape \[B=2\]", {"bias": torch.zeros(3)}),
        (ValueError, r"query_mask: shape \[B=2, S=3\]", {"query_mask": torch.ones(2, 2).bool()}),
    ]:
        with pytest.raises(kind, match=message):
            reweave_attention(**{**good, **change})
