"""Searching the index, choosing passages: `pytest benchmarks/ops/bench_maxsim.py`.

One query token is a decode step's share, since the maxima of the older ones are kept; 64 are a
prompt's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.ops.measure import BLOCK, DEVICES, SIDES, assert_equal_outputs, measure, size, unit
from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.select import Rule, SearchColumns
from cmr.kernels.select import maxsim_select, new_scratch, new_selection

RULE = Rule(
    peak_power=2, clamp=8.0, threshold=0.0, null_base=0.5, null_slope=0.2, few_blocks=4,
    few_certainty=1.0, passage=2, neighbours=1,
)  # fmt: skip
K = 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hidden", [576, 4096])
@pytest.mark.parametrize("stored", [4096, 65536])
@pytest.mark.parametrize("queries", [1, 64])
@pytest.mark.parametrize("by", SIDES)
def test_block_maxima(
    benchmark, queries: int, stored: int, hidden: int, device: str, by: str
) -> None:
    if device == "cpu" and stored * hidden > 1 << 27:
        pytest.skip("half a gibibyte of index says nothing that 75 MB do not")
    query = unit(1, queries, hidden, device=device)
    index = unit(stored // BLOCK, BLOCK, hidden, device=device)
    positions = torch.arange(stored, device=device).view(-1, BLOCK)
    out = torch.empty(1, queries, stored // BLOCK, device=device)

    def ours() -> torch.Tensor:
        return block_maxima(query, index, positions, out=out)

    def plain() -> torch.Tensor:
        similar = (query @ index.flatten(0, 1).t()).unflatten(-1, positions.shape)
        return similar.masked_fill(positions < 0, float("-inf")).amax(-1).float()

    def equal(have: Any, want: Any) -> None:
        assert_equal_outputs(have, want, atol=4e-3)  # plain rounds its products to bfloat16

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device, equal=equal,
        moved=size(query, index, positions, out), flops=2 * queries * index.numel(),
        queries=queries, stored=stored, hidden=hidden,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stored", [4096, 65536])
@pytest.mark.parametrize("by", SIDES)
def test_select(benchmark, stored: int, device: str, by: str) -> None:
    """From the maxima of 64 query tokens to the block table."""
    queries, blocks = 64, stored // BLOCK
    slots = torch.arange(blocks, device=device)
    maxima = torch.randn(1, queries, blocks).tanh().to(device)
    columns = SearchColumns(
        session=torch.zeros_like(slots),
        positions=torch.arange(stored, device=device).view(blocks, BLOCK),
        successor=torch.where(slots + 1 < blocks, slots + 1, -1),
        predecessor=slots - 1,
        created=slots + 1,
    )
    sessions = torch.zeros(1, dtype=torch.int64, device=device)
    out = new_selection(maxima, K, RULE.passage + 2 * RULE.neighbours)
    scratch = new_scratch(maxima, 1, queries, blocks)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = maxsim_select(
            maxima, None, columns, sessions, None, RULE, K, out=out, scratch=scratch
        )
        return chosen.scores, chosen.starts

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        """As a user would write it for one session that fills the ring in order."""
        z = maxima - maxima.mean(-1, keepdim=True)
        z = (z / z.square().mean(-1, keepdim=True).sqrt()).clamp(-RULE.clamp, RULE.clamp)
        z = torch.maximum(z, z.roll(-1, -1).index_fill(-1, slots[-1:], -RULE.clamp))
        weight = z.amax(-1).clamp(min=0) ** 2
        line = torch.einsum("bq,bqn->bn", weight / weight.sum(-1, keepdim=True), z)
        edge = torch.full_like(line[:, :1], float("-inf"))
        after, before = (
            torch.cat((line[:, 1:], edge), 1),
            torch.cat((edge, line[:, :-1]), 1),
        )
        peaks = line.masked_fill(~((line >= after) & (line > before)), float("-inf"))
        scores, starts = peaks.topk(K)
        kept = scores >= 0
        return scores.masked_fill(~kept, float("-inf")), starts.masked_fill(~kept, -1)

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device,
        moved=size(maxima, columns.session, columns.successor, columns.predecessor),
        flops=8 * maxima.numel(), queries=queries, stored=stored,
    )  # fmt: skip
