"""Token and block scores against brute force in float64."""

import importlib
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels import (
    attention_received,
    calibrate,
    inverse_norm,
    pool_blocks,
    state_scores,
    surprise,
)
from cmr.kernels import score as ops
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice

received = importlib.import_module("cmr.kernels.attention_received")  # not the function


def variance(states: torch.Tensor) -> torch.Tensor:
    return state_scores(states, 1).variance


def norm(states: torch.Tensor) -> torch.Tensor:
    return state_scores(states, 1).norm


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 3),
    steps=st.sampled_from([1, 63, 130]),
    width=st.sampled_from([1, 60, 100, 576]),
    offset=st.sampled_from([0.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_variance_and_norms(batch, steps, width, offset, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, steps, width, generator=rng) + offset
    if states.numel():
        states[0, 0] = 0
    exact = states.double()
    norms = exact.square().sum(-1).sqrt()
    assert_close("variance", variance(states), exact.var(-1, correction=0), 1e-4, 1e-4)
    assert_close("norm", norm(states), norms)
    inverse = torch.where(norms == 0, 0.0, 1.0 / norms)
    assert_close("inverse norm", inverse_norm(states), inverse)


def test_no_tokens_have_no_scores() -> None:
    assert norm(torch.zeros(2, 0, 8)).shape == inverse_norm(torch.zeros(2, 0, 8)).shape == (2, 0)
    assert surprise(torch.zeros(2, 0, 9), torch.zeros(2, 0).long()).shape == (2, 0)


def test_low_precision_states_are_scored_in_float32() -> None:
    states = (torch.randn(2, 40, 576) * 3 + 1).bfloat16()
    exact = states.double()
    assert variance(states).dtype == norm(states).dtype == torch.float32
    assert_error_at_most_twice(
        "variance", variance(states), states.var(-1, correction=0), exact.var(-1, correction=0), 0.0
    )
    assert_error_at_most_twice("norm", norm(states), states.norm(dim=-1), exact.norm(dim=-1), 0.0)
    large = torch.full((1, 1, 576), 3e4, dtype=torch.float16)
    assert_close("no overflow", norm(large), large.double().norm(dim=-1), 0.0)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    repeat=st.integers(1, 3),
    steps=st.sampled_from([1, 5, 17]),
    extra=st.sampled_from([0, 4]),
    is_causal=st.booleans(),
    masked=st.booleans(),
    chunk=st.sampled_from([1, 3000, 16 << 20]),
    seed=st.integers(0, 99),
)
def test_attention_received(
    batch, groups, repeat, steps, extra, is_causal, masked, chunk, seed
) -> None:
    rng = torch.Generator().manual_seed(seed)
    length = steps + extra
    query = torch.randn(batch, groups * repeat, steps, 20, generator=rng)
    key = torch.randn(batch, groups, length, 20, generator=rng)
    mask = torch.rand(batch, length, generator=rng) > 0.4 if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(received, "CHUNK_BYTES", chunk)
        have = attention_received(query, key, is_causal=is_causal, key_mask=mask)
    logits = query.double() @ key.double().repeat_interleave(repeat, 1).mT * 20**-0.5
    visible = torch.ones(batch, 1, steps, length, dtype=torch.bool)
    if is_causal:
        visible = visible.tril(length - steps)
    if mask is not None:
        visible = visible & mask[:, None, None]
        if not extra:
            visible = visible & mask[:, None, :, None]
    shares = torch.softmax(logits.masked_fill(~visible, -math.inf), -1).nan_to_num(0.0)
    seen = visible.sum(2).clamp(min=1)
    assert_close("received", have, (shares.sum(2) / seen).mean(1))
    if mask is not None:
        assert (have[~mask] == 0).all()


def test_attention_received_holds_no_full_matrix(monkeypatch) -> None:
    monkeypatch.setattr(received, "CHUNK_BYTES", 4 * 2 * 90 * 8)
    sizes = []
    real = received.group_logits

    def noted(*arguments):
        logits = real(*arguments)
        sizes.append(logits.numel() * 4)
        return logits

    monkeypatch.setattr(received, "group_logits", noted)
    attention_received(torch.randn(1, 2, 90, 8), torch.randn(1, 2, 90, 8))
    assert max(sizes) <= 4 * 2 * 90 * 8 and len(sizes) == 12


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    steps=st.sampled_from([1, 2, 63]),
    vocabulary=st.sampled_from([2, 101, 1000]),
    with_previous=st.booleans(),
    chunk=st.sampled_from([1, 16 << 20]),
    seed=st.integers(0, 99),
)
def test_surprise(batch, steps, vocabulary, with_previous, chunk, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, steps, vocabulary, generator=rng) * 5
    tokens = torch.randint(vocabulary, (batch, steps), generator=rng)
    previous = torch.randn(batch, vocabulary, generator=rng) if with_previous else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "CHUNK_BYTES", chunk)
        have = surprise(logits, tokens, previous)
    want = F.cross_entropy(logits[:, :-1].double().mT, tokens[:, 1:], reduction="none")
    assert_close("later tokens", have[:, 1:], want)
    if previous is not None:
        first = F.cross_entropy(previous.double(), tokens[:, 0], reduction="none")
    else:
        first = want.mean(1) if steps > 1 else torch.zeros(batch)
    assert_close("first token", have[:, 0], first)


def test_surprise_of_bfloat16_logits_is_float32() -> None:
    logits = (torch.randn(1, 30, 5000) * 4).bfloat16()
    tokens = torch.randint(5000, (1, 30))
    have = surprise(logits, tokens)[:, 1:]
    exact = F.cross_entropy(logits[:, :-1].double().mT, tokens[:, 1:], reduction="none")
    naive = F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")
    assert have.dtype == torch.float32
    assert_error_at_most_twice("surprise", have, naive, exact, 0.0)


@given(
    sample=st.lists(st.integers(-5, 5), max_size=30),
    values=st.lists(st.integers(-7, 7), min_size=1, max_size=10),
)
def test_calibrate_is_the_share_below_with_ties_counted_half(sample, values) -> None:
    have = calibrate(torch.tensor(values).float(), torch.tensor(sorted(sample)).float())
    for value, share in zip(values, have.tolist(), strict=True):
        if not sample:
            assert share == 0.5
            continue
        below = sum(item < value for item in sample)
        upto = sum(item <= value for item in sample)
        assert share == pytest.approx((below + upto) / (2 * len(sample)))


def test_calibrated_scores_of_any_scale_have_their_median_at_one_half() -> None:
    for scale in (1e-3, 1.0, 1e4):
        scores = torch.randn(2, 500).exp() * scale
        quantiles = calibrate(scores, scores.flatten().sort().values)
        assert float(quantiles.median()) == pytest.approx(0.5, abs=0.01)
    odd = calibrate(torch.tensor([math.nan, math.inf, -math.inf]), torch.arange(4.0))
    assert odd.tolist() == [0.0, 1.0, 0.0]


@settings(deadline=None)
@given(
    batch=st.integers(1, 3),
    steps=st.sampled_from([0, 1, 31, 32, 63, 1000]),
    block_size=st.sampled_from([1, 5, 32]),
    ragged=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pool_blocks(batch, steps, block_size, ragged, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, steps, generator=rng)
    lengths = torch.randint(0, steps + 1, (batch,), generator=rng) if ragged else None
    if ragged:
        scores = scores.masked_fill(torch.arange(steps)[None] >= lengths[:, None], math.nan)
    have = pool_blocks(scores, block_size, lengths)
    want = torch.zeros(batch, math.ceil(steps / block_size))
    for b in range(batch):
        row = scores[b, : steps if lengths is None else int(lengths[b])].double().numpy()
        for n in range(math.ceil(len(row) / block_size)):
            want[b, n] = float(numpy.mean(row[n * block_size : (n + 1) * block_size]))
    assert_close("blocks", have, want)


def test_bad_input_is_named() -> None:
    cases = [
        (ValueError, r"states: shape \[B, S, H\]", lambda: variance(torch.zeros(3, 4))),
        (TypeError, "states: a floating-point", lambda: norm(torch.zeros(1, 3, 4).int())),
        (ValueError, "block_size: .*got 0", lambda: pool_blocks(torch.zeros(1, 3), 0)),
        (TypeError, "token_ids: an int", lambda: surprise(torch.zeros(1, 2, 3), torch.zeros(1, 2))),
        (
            ValueError,
            "at most L=2 tokens expected, got 3",
            lambda: attention_received(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 4)),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 3),
    sample=st.sampled_from([0, 1, 9]),
    steps=st.sampled_from([1, 7, 40]),
    as_tensor=st.booleans(),
    seed=st.integers(0, 99),
)
def test_hybrid_blocks_calibrates_weighs_and_pools(count, sample, steps, as_tensor, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (count, 2, steps), generator=rng).float()
    scores[0, 0, 0] = math.nan
    references = torch.randint(-3, 4, (count, sample), generator=rng).float().sort(-1).values
    weights = [1.0, 0.0, 2.5][:count]
    want = torch.zeros(2, steps, dtype=torch.float64)
    for weight, score, known in zip(weights, scores.double(), references.double(), strict=True):
        for b in range(2):
            for s in range(steps):
                below = (known < score[b, s]).sum() + (known <= score[b, s]).sum()
                want[b, s] += weight * (below / (2 * sample) if sample else 0.5)
    want /= sum(weights)
    lengths = torch.tensor([steps, steps // 2])
    given_weights = torch.tensor(weights) if as_tensor else weights
    have = ops.hybrid_blocks(scores, references, given_weights, 5, lengths)
    assert_close("tokens", have.tokens, want)
    assert_close("pooled", have.pooled, pool_blocks(want, 5, lengths))


def calls():
    """Each operation, small, by its name."""
    tokens, blocks = torch.empty(2, 6), torch.empty(2, 2)
    states, ids = torch.randn(2, 6, 8), torch.randint(8, (2, 6))
    lengths = torch.tensor([6, 3])
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    mask = torch.rand(2, 6) > 0.3
    per_head = torch.zeros(2, 4, 6), torch.zeros(2, 4, 6)
    references = torch.randn(3, 5).sort(-1).values
    scores = torch.randn(3, 2, 6)
    out = [tokens.clone() for _ in range(3)]
    return {
        "state_scores": (ops.state_scores_, (states, lengths, 4, *out, blocks)),
        "attention_received": (
            received.attention_received_,
            (query, key, mask, 0.3, True, *per_head, tokens.clone()),
        ),
        "surprise": (ops.surprise_, (states, ids, states[:, 0], tokens.clone())),
        "hybrid_blocks": (
            ops.hybrid_blocks_,
            (scores, references, torch.ones(3), lengths, 4, tokens.clone(), blocks.clone()),
        ),
    }


@pytest.mark.parametrize("name", sorted(calls()))
def test_the_operations_keep_what_they_promise_pytorch(name: str) -> None:
    torch.library.opcheck(*calls()[name])


def test_all_scores_of_a_text_compile_to_one_graph() -> None:
    def scores(states, query, key, logits, ids, references, lengths):
        found = ops.state_scores(states, 4, lengths)
        every = torch.stack([found.variance, attention_received(query, key), surprise(logits, ids)])
        return ops.hybrid_blocks(every, references, torch.ones(3), 4, lengths)

    torch.manual_seed(0)
    arguments = (
        torch.randn(2, 6, 8), torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8),
        torch.randn(2, 6, 30), torch.randint(30, (2, 6)), torch.randn(3, 9).sort(-1).values,
        torch.tensor([6, 3]),
    )  # fmt: skip
    torch._dynamo.reset()
    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    for name, have, want in zip("tp", compiled(*arguments), scores(*arguments), strict=True):
        assert_close(name, have, want)
    states, query, key, logits, ids, references, _ = arguments
    quantiles = [
        calibrate(score, sample)
        for score, sample in zip(
            [variance(states), attention_received(query, key), surprise(logits, ids)],
            references,
            strict=True,
        )
    ]
    assert_close("the parts", compiled(*arguments)[0], torch.stack(quantiles).mean(0))


def test_bad_input_of_the_operations_is_named() -> None:
    one, known = torch.zeros(1, 2, 3), torch.zeros(1, 4)
    cases = [
        (ValueError, "at least one tensor", lambda: ops.hybrid_blocks(one[:0], known, [1], 4)),
        (ValueError, "references: shape", lambda: ops.hybrid_blocks(one, known[0], [1], 4)),
        (ValueError, "weights: 1 numbers", lambda: ops.hybrid_blocks(one, known, [1, 2], 4)),
        (ValueError, "above 0", lambda: ops.hybrid_blocks(one, known, [math.nan], 4)),
        (ValueError, "above 0", lambda: ops.hybrid_blocks(one, known, torch.tensor([-1.0]), 4)),
        (ValueError, "block_size: .*got 0", lambda: ops.hybrid_blocks(one, known, [1], 0)),
        (TypeError, "scores: dtype", lambda: ops.hybrid_blocks(one.half(), known, [1], 4)),
        (ValueError, "weights: .*above 0", lambda: ops.hybrid_blocks(one, known, [0], 4)),
        (TypeError, "token_ids: an int", lambda: ops.surprise(one, one[:, :, 0])),
        (
            ValueError,
            "at most L=2 tokens expected, got 3",
            lambda: attention_received(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 4)),
        ),
        (
            ValueError,
            "a multiple of the 2 key heads",
            lambda: attention_received(torch.zeros(1, 3, 3, 4), torch.zeros(1, 2, 3, 4)),
        ),
        (ValueError, "block_size: .*got 0", lambda: ops.state_scores(one, 0)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
