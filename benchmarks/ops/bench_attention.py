"""Attention with its log-sum-exp: `pytest benchmarks/ops/bench_attention.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.ops.measure import DEVICES, SIDES, assert_equal_outputs, measure, normal, size
from cmr.kernels.attention import attention_with_lse
from cmr.kernels.attention_partials import attention_partials

PARTS = 4
HEADS = [(9, 3, 64), (32, 8, 128)]


def close(have: Any, want: Any) -> None:
    """Within the rounding of bfloat16 outputs and of probabilities of either side."""
    assert_equal_outputs(have, want, atol=1e-2, rtol=2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "groups", "width"), HEADS)
@pytest.mark.parametrize("by", SIDES)
def test_prefill(benchmark, heads: int, groups: int, width: int, device: str, by: str) -> None:
    """A window of 512 tokens; the plain side gives no log-sum-exp."""
    tokens = 512
    query = normal(1, heads, tokens, width, device=device)
    key, value = (normal(1, groups, tokens, width, device=device) for _ in range(2))
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)

    def ours() -> torch.Tensor:
        return attention_with_lse(query, key, value, is_causal=True, out=out, lse=lse)[0]

    def plain() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device, equal=close,
        moved=size(query, key, value, out, lse), flops=2 * heads * tokens * tokens * width,
        heads=heads, groups=groups, width=width, tokens=tokens,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "groups", "width"), HEADS)
@pytest.mark.parametrize("seen", [516, 4096])
@pytest.mark.parametrize("by", SIDES)
def test_decode(
    benchmark, seen: int, heads: int, groups: int, width: int, device: str, by: str
) -> None:
    """One query over the local window, in parts that `reweave_paged` merges."""
    query = normal(1, heads, 1, width, device=device)
    key, value = (normal(1, groups, seen, width, device=device) for _ in range(2))
    out = torch.empty(PARTS, 1, heads, 1, width, device=device)
    lse = torch.empty(PARTS, 1, heads, 1, device=device)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        return attention_partials(query, key, value, out=out, lse=lse)

    def merged(parts: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
        shares = torch.softmax(logs, 0).unsqueeze(-1)
        return (shares * parts).sum(0).to(query.dtype)

    def plain() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device,
        equal=lambda have, want: close(merged(*have), want),
        moved=size(query, key, value, out, lse), flops=4 * heads * seen * width,
        heads=heads, groups=groups, width=width, seen=seen, parts=PARTS,
    )  # fmt: skip
