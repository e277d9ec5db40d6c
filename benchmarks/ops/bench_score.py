"""Scores of tokens and blocks: `pytest benchmarks/ops/bench_score.py`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.ops.measure import BLOCK, DEVICES, SIDES, measure, normal, size
from cmr.kernels.attention_received import attention_received
from cmr.kernels.score import state_scores, surprise


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hidden", [576, 4096])
@pytest.mark.parametrize("tokens", [4096, 65536])
@pytest.mark.parametrize("by", SIDES)
def test_state_scores(benchmark, tokens: int, hidden: int, device: str, by: str) -> None:
    if device == "cpu" and tokens * hidden > 1 << 27:
        pytest.skip("half a gibibyte of states says nothing that 75 MB do not")
    states = normal(1, tokens, hidden, device=device)

    def ours() -> tuple[torch.Tensor, ...]:
        return state_scores(states, BLOCK)

    def plain() -> tuple[torch.Tensor, ...]:
        wide = states.float()
        spread, norm = wide.var(-1, correction=0), wide.norm(dim=-1)
        return spread, norm, 1 / norm, spread.unflatten(1, (-1, BLOCK)).mean(-1)

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device,
        moved=size(states) + 4 * (3 * tokens + tokens // BLOCK), flops=8 * states.numel(),
        tokens=tokens, hidden=hidden,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "groups", "width"), [(9, 3, 64), (32, 8, 128)])
@pytest.mark.parametrize("by", SIDES)
def test_attention_received(
    benchmark, heads: int, groups: int, width: int, device: str, by: str
) -> None:
    """A window of 512 tokens; the plain side keeps the matrix of probabilities."""
    tokens = 512
    query = normal(1, heads, tokens, width, device=device)
    key = normal(1, groups, tokens, width, device=device)
    seen = torch.arange(tokens, 0, -1, device=device)
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)

    def ours() -> torch.Tensor:
        return attention_received(query, key)

    def plain() -> torch.Tensor:
        keys = key.repeat_interleave(heads // groups, 1)
        logits = (query @ keys.mT).float() * width**-0.5
        shares = logits.masked_fill(hidden, float("-inf")).softmax(-1)
        return shares.mean(1).sum(1) / seen

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device,
        moved=size(query, key) + 4 * tokens, flops=2 * heads * tokens * tokens * width,
        heads=heads, groups=groups, width=width, tokens=tokens,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocabulary", [49152, 128256])
@pytest.mark.parametrize("by", SIDES)
def test_surprise(benchmark, vocabulary: int, device: str, by: str) -> None:
    """The loss of 64 tokens from their logits."""
    tokens = 64
    logits = normal(1, tokens, vocabulary, device=device)
    previous = normal(1, vocabulary, device=device)
    ids = torch.randint(vocabulary, (1, tokens)).to(device)

    def ours() -> torch.Tensor:
        return surprise(logits, ids, previous)

    def plain() -> torch.Tensor:
        before = torch.cat((previous[:, None], logits[:, :-1]), 1).float()
        return F.cross_entropy(before[0], ids[0], reduction="none")[None]

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device,
        moved=size(logits, ids) + 4 * tokens, flops=3 * logits.numel(),
        tokens=tokens, vocabulary=vocabulary,
    )  # fmt: skip
