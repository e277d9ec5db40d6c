"""Scores: Triton's kernels, interpreted, against the specification."""

import math

import pytest
import torch

from cmr.kernels import dispatch
from cmr.kernels.attention_received import attention_received
from cmr.kernels.score import hybrid_blocks, state_scores, surprise
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice, specified


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (63, 60), (32, 577), (1, 4100), (9, 8192)])
def test_state_scores(tokens: int, hidden: int, dtype: torch.dtype) -> None:
    states = (3 * torch.randn(2, tokens, hidden) + 1).to(dtype)
    states[0, 0] = 0
    lengths = torch.tensor([tokens, tokens // 2])
    have = state_scores(states, 32, lengths)
    want = specified(state_scores, states, 32, lengths)
    for name, a, b in zip(have._fields, have, want, strict=True):
        assert_close(name, a, b)


@pytest.mark.parametrize(
    ("steps", "length", "width", "is_causal", "masked", "dtype"),
    [
        (1, 1, 20, True, False, torch.float32),
        (70, 70, 96, True, True, torch.float32),
        (17, 90, 20, True, True, torch.bfloat16),
        (90, 40, 100, False, True, torch.float16),
        (70, 70, 64, True, False, torch.bfloat16),
        (66, 67, 256, False, False, torch.bfloat16),
        (65, 65, 80, False, True, torch.float16),
    ],
)
def test_attention_received(steps, length, width, is_causal, masked, dtype) -> None:
    query = torch.randn(2, steps, 4, width).to(dtype).transpose(1, 2)  # a strided view
    key = torch.randn(2, 2, length, width).to(dtype)
    mask = torch.rand(2, length) > 0.4 if masked else None
    if mask is not None:
        mask[1] = False  # a row of padding only
        key.masked_fill_(~mask[:, None, :, None], math.nan)  # must not be looked at
    options = {"is_causal": is_causal, "key_mask": mask}
    have = attention_received(query, key, **options)
    clean = key.nan_to_num(0.0)
    exact = specified(attention_received, query.double(), clean.double(), **options).double()
    naive = specified(attention_received, query, clean, **options)
    assert_error_at_most_twice("received", have, naive, exact, 1e-5)
    if mask is not None:
        assert (have[~mask] == 0).all()


def test_attention_received_of_nan() -> None:
    query, key = torch.randn(1, 2, 5, 20), torch.randn(1, 2, 5, 20)
    query[:, :, 3] = math.nan
    everyone = torch.ones(1, 5, dtype=torch.bool)
    have = attention_received(query, key, key_mask=everyone)
    assert_close("masked", have, specified(attention_received, query, key, key_mask=everyone))
    assert attention_received(query, key)[0, 0].isnan()
    assert not attention_received(query[:, :, :0], key).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("steps", "vocabulary", "with_previous"),
    [(1, 5, False), (1, 101, True), (6, 4099, True), (9, 9000, False), (2, 1, False)],
)
def test_surprise(steps: int, vocabulary: int, with_previous: bool, dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(2, steps, vocabulary)).to(dtype)
    logits[0, 0, 1:] = -math.inf  # as constrained decoding does
    tokens = torch.randint(vocabulary, (2, steps)).int()
    previous = torch.randn(2, vocabulary).to(dtype) if with_previous else None
    have = surprise(logits, tokens, previous)
    want = specified(surprise, logits, tokens, previous)
    assert_close("surprise", have, want)


def test_surprise_of_infinite_logits() -> None:
    logits = torch.randn(1, 6, 5000)
    logits[0, 0, 4500] = math.inf
    logits[0, 1, 3] = math.inf
    logits[0, 2, 4999] = math.nan
    logits[0, 3] = -math.inf
    logits[0, 4] *= 1e4
    tokens = torch.tensor([[9, 8, 7, 6, 5, 4]])
    before = torch.randn(1, 5000)
    have, want = surprise(logits, tokens, before), specified(surprise, logits, tokens, before)
    assert_close("surprise", have, want)
    assert have[0, 1:3].isposinf().all() and have[0, 3:5].isnan().all()


@pytest.mark.parametrize("sample", [0, 1, 2, 7, 64])
@pytest.mark.parametrize(("steps", "size"), [(1, 1), (63, 5), (300, 32)])
def test_hybrid_blocks(sample: int, steps: int, size: int) -> None:
    scores = torch.randint(-5, 6, (3, 2, steps)).float()
    scores[0, 0, 0], scores[1, 1, -1], scores[2, 0, 0] = math.nan, math.inf, -math.inf
    references = torch.randint(-4, 5, (3, sample)).float().sort(-1).values
    lengths = torch.tensor([steps, steps // 2])
    have = hybrid_blocks(scores, references, [1, 0.5, 2], size, lengths)
    want = specified(hybrid_blocks, scores, references, [1, 0.5, 2], size, lengths)
    for name, a, b in zip(have._fields, have, want, strict=True):
        assert_close(name, a, b)


def test_no_tokens_have_no_scores() -> None:
    none = torch.empty(2, 0, 9)
    assert state_scores(none, 4).pooled.shape == (2, 0)
    assert surprise(none, torch.empty(2, 0).long()).shape == (2, 0)
    assert hybrid_blocks(none[None, :, :, 0], torch.zeros(1, 3), [1], 4).tokens.shape == (2, 0)
    nobody = torch.empty(2, 1, 0, 9)
    assert attention_received(nobody, nobody).shape == (2, 0)


def test_the_kernel_is_what_ran() -> None:
    assert dispatch.implementation("cpu").name == "triton"
