"""Cosine top-k: `pytest benchmarks/ops/bench_cosine_topk.py`.

`python -m benchmarks.cost.search_speed` compares with faiss, in turns.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.ops.measure import DEVICES, SIDES, measure, size, unit
from cmr.kernels import cosine_topk

HIDDEN, K = 576, 16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by", SIDES)
@pytest.mark.parametrize("queries", [1, 32, 512])
@pytest.mark.parametrize("entries", [4096, 65536])
def test_cosine_topk(benchmark, entries: int, queries: int, by: str, device: str) -> None:
    torch.manual_seed(0)
    stored = unit(entries, HIDDEN, device=device)
    query = torch.randn(queries, HIDDEN, device=device)

    def plain() -> torch.Tensor:
        similar = F.normalize(query, dim=-1).to(stored.dtype) @ stored.t()
        return similar.float().topk(K).values

    def ours() -> torch.Tensor:
        return cosine_topk(query, stored, None, None, K)[0]

    measure(
        benchmark,
        by,
        {"cmr": ours, "plain": plain},
        device=device,
        moved=size(stored, query) + 12 * queries * K,
        flops=2 * queries * stored.numel(),
        entries=entries,
        queries=queries,
        hidden=HIDDEN,
        k=K,
    )
