"""attention_with_lse: fused path and plain specification against float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cmr.kernels import attention as module
from cmr.kernels.attention import attention_with_lse, attention_with_lse_plain
from cmr.kernels.attention_partials import attention_partials, merge_partials, part_size
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice

BOTH = pytest.mark.parametrize("attend", [attention_with_lse, attention_with_lse_plain])


def exact(query, key, value, mask=None, is_causal=False, scale=None, softcap=None):
    """One query row at a time, float64."""
    batch, heads, steps, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    out = torch.zeros(batch, heads, steps, value.shape[-1], dtype=torch.float64)
    lse = torch.full((batch, heads, steps), -math.inf, dtype=torch.float64)
    full = None if mask is None else mask.expand(batch, heads, steps, length)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // groups)
            for s in range(steps):
                logits = key[b, g].double() @ query[b, h, s].double()
                logits = logits * (width**-0.5 if scale is None else scale)
                if softcap is not None:
                    logits = torch.tanh(logits / softcap) * softcap
                if is_causal:
                    logits[max(0, length - steps + s + 1) :] = -math.inf
                if full is not None:
                    row = full[b, h, s]
                    logits = (
                        logits.masked_fill(~row, -math.inf)
                        if row.dtype == torch.bool
                        else logits + row.double()
                    )
                if length and (logits > -math.inf).any():
                    lse[b, h, s] = torch.logsumexp(logits, 0)
                    out[b, h, s] = torch.softmax(logits, 0) @ value[b, g].double()
    return out, lse


def tensors(batch, heads, groups, steps, length, width, seed, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, heads, steps, width, generator=rng).to(dtype),
        torch.randn(batch, groups, length, width, generator=rng).to(dtype),
        torch.randn(batch, groups, length, width, generator=rng).to(dtype),
    )


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    repeat=st.integers(1, 3),
    steps=st.sampled_from([1, 2, 7, 17]),
    length=st.sampled_from([0, 1, 7, 17, 63]),
    width=st.sampled_from([8, 20, 60]),
    kind=st.sampled_from(["none", "bool", "per head", "float", "keys"]),
    is_causal=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 99),
)
def test_both_paths_match_brute_force(
    batch, groups, repeat, steps, length, width, kind, is_causal, softcap, seed
) -> None:
    heads = groups * repeat
    query, key, value = tensors(batch, heads, groups, steps, length, width, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    shape = {
        "per head": (batch, heads, steps, length),
        "keys": (batch, 1, 1, length),
    }.get(kind, (batch, 1, steps, length))
    mask = None if kind == "none" else torch.rand(shape, generator=rng) > 0.4
    if kind == "float":
        mask = torch.randn(shape, generator=rng).masked_fill(~mask, -math.inf)
    want_out, want_lse = exact(query, key, value, mask, is_causal, 0.3, softcap)
    for attend in (attention_with_lse, attention_with_lse_plain):
        out, lse = attend(query, key, value, mask, is_causal, 0.3, softcap)
        assert out.dtype == query.dtype and lse.dtype == torch.float32
        assert_close(f"{attend.__name__} out", out, want_out)
        assert_close(f"{attend.__name__} lse", lse, want_lse)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["bool", "float"])
def test_a_row_that_sees_nothing_gives_zero_and_minus_infinity(attend, dtype, form) -> None:
    query, key, value = tensors(2, 4, 2, 5, 9, 16, 3, dtype)
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool)
    mask[0, 0, 1:3] = False
    if form == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    out, lse = attend(query, key, value, mask)
    assert (out[0, :, 1:3] == 0).all() and (lse[0, :, 1:3] == -math.inf).all()
    assert lse[0, :, 3:].isfinite().all() and lse[1].isfinite().all()


@BOTH
@pytest.mark.parametrize("width", [60, 64, 100, 256])
@pytest.mark.parametrize("steps", [1, 48])
def test_bfloat16_error_is_at_most_twice_the_naive(attend, width, steps) -> None:
    query, key, value = tensors(1, 6, 2, steps, 300, width, 5, torch.bfloat16)
    want_out, want_lse = exact(query, key, value)
    keys, values = (t.repeat_interleave(3, 1) for t in (key, value))
    logits = query @ keys.mT * width**-0.5
    naive = torch.softmax(logits, -1) @ values
    out, lse = attend(query, key, value)
    assert_error_at_most_twice("out", out, naive, want_out, 1e-6)
    assert_error_at_most_twice("lse", lse, torch.logsumexp(logits, -1), want_lse, 1e-6)


def test_causal_sees_up_to_the_last_key_and_agrees_with_torch_where_square() -> None:
    query, key, value = tensors(2, 4, 2, 12, 12, 16, 8)
    want = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    assert_close("square", attention_with_lse(query, key, value, is_causal=True)[0], want)
    tail = attention_with_lse(query[:, :, -3:], key, value, is_causal=True)
    assert_close("last three", tail[0], want[:, :, -3:])


def test_the_fused_path_runs_where_it_can_and_only_there(monkeypatch) -> None:
    calls = []
    real = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if not hasattr(torch.ops.aten, real.__name__.split(".")[-1]):
        pytest.skip("this PyTorch has no fused CPU attention")

    def counted(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", counted)
    query, key, value = tensors(1, 4, 2, 3, 5, 16, 0)
    attention_with_lse(query, key, value)
    assert calls == [1]
    attention_with_lse(query, key, value, softcap=3.0)
    attention_with_lse(query, key, value[..., :8])
    attention_with_lse(query.double(), key.double(), value.double())
    attention_with_lse(query.requires_grad_(), key, value)[1].sum().backward()
    assert query.grad is not None and calls == [1]


def test_without_the_fused_kernel_the_plain_version_runs(monkeypatch) -> None:
    monkeypatch.setattr(module, "_fused_works", lambda grouped: False)
    query, key, value = tensors(1, 4, 2, 3, 5, 16, 0)
    out, lse = attention_with_lse(query, key, value)
    want, want_lse = attention_with_lse_plain(query, key, value)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)


def test_transposed_and_sliced_inputs() -> None:
    query, key, value = tensors(2, 4, 2, 6, 11, 16, 4)
    strided = query.transpose(1, 2).contiguous().transpose(1, 2)
    longer = torch.cat([key, key], 2)[:, :, :11]
    out, lse = attention_with_lse(strided, longer, value)
    want, want_lse = exact(query, key, value)
    assert_close("out", out, want)
    assert_close("lse", lse, want_lse)


@BOTH
def test_the_same_input_gives_the_same_bits(attend) -> None:
    inputs = tensors(2, 6, 2, 33, 65, 64, 1, torch.bfloat16)
    first = attend(*inputs)
    for _ in range(5):
        again = attend(*inputs)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_bad_input_is_named() -> None:
    query, key, value = tensors(2, 4, 2, 3, 5, 16, 0)
    cases = [
        (ValueError, r"key: shape \[B=2, G, L, D=16\]", (query, key[:1], value)),
        (ValueError, "a multiple of the 3 key heads", (query, *[key[:, [0, 1, 1]]] * 2)),
        (TypeError, "value: dtype torch.float32 expected", (query, key, value.double())),
        (TypeError, "query: a floating-point dtype", (query.int(), key.int(), value.int())),
        (ValueError, "mask: a shape broadcastable", (query, key, value, torch.zeros(4, 5))),
        (TypeError, "mask: dtype bool or float", (query, key, value, torch.zeros(3, 5).int())),
        (ValueError, "softcap: a number above 0", (query, key, value, None, False, 1.0, 0.0)),
        (TypeError, "query: a tensor expected, got list", ([1], key, value)),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message):
            attention_with_lse(*arguments)


def test_a_row_of_the_lowest_finite_numbers_is_an_even_mean() -> None:
    query, key, value = tensors(1, 4, 2, 3, 5, 16, 0)
    mask = torch.full((3, 5), torch.finfo(torch.float32).min)
    for attend in (attention_with_lse, attention_with_lse_plain):
        out, _ = attend(query, key, value, mask)
        want = value.mean(2, keepdim=True).repeat_interleave(2, 1).expand_as(out)
        assert_close(attend.__name__, out, want)


def test_given_results_are_written_and_refused_with_gradients() -> None:
    query, key, value = tensors(2, 4, 2, 3, 5, 16, 0)
    out, lse = torch.empty(2, 3, 4, 16).transpose(1, 2), torch.empty(2, 4, 3)
    have = attention_with_lse(query, key, value, out=out, lse=lse)
    want = attention_with_lse(query, key, value)
    assert have[0] is out and torch.equal(out, want[0]) and torch.equal(lse, want[1])
    with pytest.raises(ValueError, match="no gradient flows through results that are given"):
        attention_with_lse(query.requires_grad_(), key, value, out=out)
    with pytest.raises(ValueError, match="lse: a contiguous tensor"):
        attention_with_lse(query.detach(), key, value, lse=torch.empty(2, 3, 4).mT)


@settings(deadline=None, max_examples=30)
@given(
    steps=st.sampled_from([1, 3]),
    length=st.sampled_from([0, 1, 16, 63, 130]),
    parts=st.sampled_from([1, 2, 4, 5]),
    kind=st.sampled_from(["none", "bool", "keys", "float", "one"]),
    is_causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_partials_merge_into_the_whole(steps, length, parts, kind, is_causal, seed) -> None:
    query, key, value = tensors(2, 4, 2, steps, length, 20, seed)
    shape = {"keys": (2, 1, 1, length), "one": (steps, 1)}.get(kind, (2, 1, steps, length))
    rng = torch.Generator().manual_seed(seed)
    mask = None if kind == "none" else torch.rand(shape, generator=rng) > 0.4
    if kind == "float":
        mask = torch.randn(shape, generator=rng).masked_fill(~mask, -math.inf)
    out, lse = torch.empty(parts, 2, 4, steps, 20), torch.empty(parts, 2, 4, steps)
    have = attention_partials(query, key, value, mask, is_causal, 0.3, out=out, lse=lse)
    assert have[0] is out and have[1] is lse
    want_out, want_lse = exact(query, key, value, mask, is_causal, 0.3)
    merged_out, merged_lse = merge_partials(out, lse)
    assert_close("out", merged_out, want_out)
    assert_close("lse", merged_lse, want_lse)
    size = part_size(length, parts)
    for part in range(parts):
        if part * size >= length:
            assert (out[part] == 0).all() and (lse[part] == -math.inf).all()


@pytest.mark.parametrize("name", ["attention_with_lse", "attention_partials"])
def test_well_formed_operations(name: str) -> None:
    query, key, value = tensors(2, 4, 2, 3, 5, 16, 0)
    lead = () if name == "attention_with_lse" else (2,)
    out, lse = torch.empty(*lead, 2, 4, 3, 16), torch.empty(*lead, 2, 4, 3)
    given = (query, key, value, torch.ones(3, 5).bool(), True, 0.25, None, out, lse)
    torch.library.opcheck(getattr(torch.ops.cmr, name).default, given)


def test_compiles_as_one_graph() -> None:
    query, key, value = tensors(2, 4, 2, 3, 5, 16, 0)
    compiled = torch.compile(attention_with_lse, fullgraph=True, backend="aot_eager")
    want = attention_with_lse(query, key, value)
    assert all(torch.equal(a, b) for a, b in zip(compiled(query, key, value), want, strict=True))
    out, lse = torch.empty(2, *want[0].shape), torch.empty(2, *want[1].shape)
    split = torch.compile(attention_partials, fullgraph=True, backend="aot_eager")
    split(query, key, value, out=out, lse=lse)
    assert_close("out", merge_partials(out, lse)[0], want[0])


@pytest.mark.parametrize("mask", [None, "row", "head"])
def test_the_heads_of_a_group_read_their_keys_together_where_one_token_asks(mask) -> None:
    query, key, value = tensors(2, 6, 2, 1, 9, 8, seed=5)
    hides = {None: None, "row": torch.rand(2, 1, 1, 9) > 0.3, "head": torch.rand(2, 6, 1, 9) > 0.3}
    seen = []

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "flash_attention_for_cpu" in str(func):
                seen.append(list(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Noted():
        out, lse = module.attend(query, key, value, hides[mask], False, 0.3, None)
    # A mask that differs between heads keeps them apart.
    assert seen == [[2, 6, 1, 8] if mask == "head" else [2, 2, 3, 8]]
    want = exact(query, key, value, hides[mask], scale=0.3)
    assert_close("out", out, want[0], 1e-5, 1e-5)
    assert_close("lse", lse, want[1], 1e-5, 1e-5)
