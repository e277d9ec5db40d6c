"""Attention: Triton's kernel, interpreted, against the specification and float64."""

import math

import numpy as np
import pytest
import torch

from cmr.errors import KernelError
from cmr.kernels import attention as reference
from cmr.kernels.attention import attention_with_lse
from cmr.kernels.attention_partials import (
    attention_partials,
    attention_partials_plain,
    merge_partials,
)
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def draw(batch, heads, groups, steps, length, width, dtype=torch.float32, value_width=None):
    rng = torch.Generator().manual_seed(steps + 7 * length + width)
    query = torch.randn(batch, steps, heads, width, generator=rng).to(dtype).transpose(1, 2)
    key = torch.randn(batch, groups, length, width, generator=rng).to(dtype)
    value = torch.randn(batch, groups, length, value_width or width, generator=rng).to(dtype)
    return query, key, value


def exact(query, key, value, *rest):
    scale = query.shape[-1] ** -0.5
    return reference.attention_with_lse_plain(
        query.double(), key.double(), value.double(), *rest, scale=scale
    )


def naive(query, key, value):
    """Plain low-precision PyTorch."""
    repeat = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(repeat, 1) for x in (key, value))
    logits = query @ keys.mT * query.shape[-1] ** -0.5
    return torch.softmax(logits, -1) @ values, torch.logsumexp(logits, -1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("heads", "groups", "steps", "length", "width"),
    [
        (9, 3, 1, 516, 64),
        (8, 1, 3, 63, 80),
        (2, 2, 17, 63, 96),
        (9, 3, 17, 70, 100),
        (4, 2, 3, 1, 128),
        (6, 2, 17, 63, 256),
        (1, 1, 1, 1, 64),
    ],
)
def test_error_is_at_most_twice_the_naive(heads, groups, steps, length, width, dtype) -> None:
    inputs = draw(2, heads, groups, steps, length, width, dtype)
    out, lse = attention_with_lse(*inputs)
    want_out, want_lse = exact(*inputs)
    plain_out, plain_lse = naive(*inputs)
    floor = 1e-6 if dtype == torch.float32 else 1e-3
    assert_error_at_most_twice("out", out, plain_out, want_out, floor)
    assert_error_at_most_twice("lse", lse, plain_lse, want_lse, floor)


@pytest.mark.parametrize("softcap", [None, 0.7, 1e5])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "bool", "per head", "keys", "float", "lowest"])
def test_masks(kind: str, is_causal: bool, softcap: float | None) -> None:
    batch, heads, steps, length = 2, 4, 11, 21
    query, key, value = draw(batch, heads, 2, steps, length, 20)
    shape = {"per head": (batch, heads, steps, length), "keys": (batch, 1, 1, length)}
    mask = None if kind == "none" else torch.rand(shape.get(kind, (1, steps, length))) > 0.4
    if mask is not None:
        mask[..., 0, :] = False
    if kind == "float":
        mask = torch.randn(mask.shape).masked_fill(~mask, -math.inf)
    if kind == "lowest":  # a finite number hides nothing, as low as it may be
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    have = attention_with_lse(query, key, value, mask, is_causal, 0.3, softcap)
    want = reference.attention_with_lse_plain(query, key, value, mask, is_causal, 0.3, softcap)
    for name, a, b in zip(("out", "lse"), have, want, strict=True):
        assert_close(name, a, b)


def test_causal_with_more_tokens_than_keys_and_the_last_key_seen() -> None:
    for steps, length in ((40, 13), (13, 40), (33, 33)):
        inputs = draw(1, 3, 1, steps, length, 16)
        have = attention_with_lse(*inputs, is_causal=True)
        want = reference.attention_with_lse_plain(*inputs, is_causal=True)
        for name, a, b in zip(("out", "lse"), have, want, strict=True):
            assert_close(name, a, b)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_without_keys_or_tokens(steps: int) -> None:
    query, key, value = draw(2, 4, 2, steps, 0, 64)
    out, lse = attention_with_lse(query, key, value)
    assert out.shape == query.shape and (out == 0).all() and (lse == -math.inf).all()


def test_values_of_another_width_and_any_strides() -> None:
    query, key, value = draw(2, 4, 2, 5, 33, 64, value_width=40)
    spread = torch.full((2, 2, 33, 128), math.nan)
    spread[..., ::2] = key
    turned = value.mT.contiguous().mT
    out = torch.empty(2, 5, 4, 80)[..., ::2].transpose(1, 2)
    lse = torch.empty(2, 4, 5)
    have = attention_with_lse(query, spread[..., ::2], turned, out=out, lse=lse)
    assert have[0] is out and have[1] is lse
    want = reference.attention_with_lse_plain(query, key, value)
    assert_close("out", out, want[0])
    assert_close("lse", lse, want[1])


@pytest.mark.parametrize("parts", [1, 4, 5])
@pytest.mark.parametrize("length", [0, 1, 63, 130])
def test_partials(length: int, parts: int) -> None:
    query, key, value = draw(2, 6, 2, 2, length, 64)
    mask = torch.rand(2, 1, 2, length) > 0.3
    out, lse = torch.empty(parts, *query.shape), torch.empty(parts, *query.shape[:3])
    attention_partials(query, key, value, mask, True, out=out, lse=lse)
    want = torch.empty_like(out), torch.empty_like(lse)
    attention_partials_plain(query, key, value, mask, True, 0.125, None, *want)
    assert_close("out", out, want[0])
    assert_close("lse", lse, want[1])
    merged = merge_partials(out, lse)
    whole = reference.attention_with_lse_plain(query, key, value, mask, True)
    for name, a, b in zip(("out", "lse"), merged, whole, strict=True):
        assert_close(name, a, b)


def test_partials_of_bfloat16_are_not_rounded() -> None:
    query, key, value = draw(1, 9, 3, 1, 516, 64, torch.bfloat16)
    out, lse = torch.empty(4, 1, 9, 1, 64), torch.empty(4, 1, 9, 1)
    attention_partials(query, key, value, out=out, lse=lse)
    merged = merge_partials(out, lse)[0]
    whole = attention_with_lse(query, key, value)[0]
    want = exact(query, key, value)[0]
    assert not torch.equal(merged, merged.bfloat16().float())
    assert_error_at_most_twice("merged", merged, whole, want, 0.0)


def test_the_same_bits_and_no_float64() -> None:
    inputs = draw(1, 6, 2, 5, 40, 64, torch.bfloat16)
    first = attention_with_lse(*inputs)
    again = attention_with_lse(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(KernelError, match="float32, float16 and bfloat16, got"):
        attention_with_lse(*(x.double() for x in inputs))


def test_past_two_to_the_31_elements() -> None:
    """The keys of the last row of a batch lie behind 2^31 elements; hardly a page is touched."""
    batch, length = 2, 9
    pages = torch.from_numpy(np.zeros(2 * (1 << 31), np.float16))
    key = pages.as_strided((batch, 1, length, 64), (1 << 31, 64, 64, 1))
    key[1] = torch.randn(1, length, 64)
    query, value = torch.randn(batch, 1, 1, 64).half(), torch.randn(batch, 1, length, 64).half()
    have = attention_with_lse(query, key, value)
    want = exact(query, key.clone(), value)
    assert_close("out", have[0], want[0], atol=2e-3, rtol=2e-3)
    assert_close("lse", have[1], want[1])
