"""Reading recalled blocks where they are stored: `pytest benchmarks/ops/bench_reweave.py`.

The plain side gathers the blocks, lays them in front of the local keys and runs PyTorch's own
attention over both, which is the same at bias 0.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.ops.measure import (
    BLOCK,
    DEVICES,
    SIDES,
    assert_equal_outputs,
    measure,
    normal,
    size,
    unit,
)
from cmr.kernels.attention_partials import attention_partials
from cmr.kernels.reweave_paged import reweave_paged
from cmr.kernels.reweave_residual import reweave_residual_paged

SLOTS, ENTRIES, PARTS, SEEN = 512, 8, 4, 516


def close(have: Any, want: Any) -> None:
    """Within the rounding of bfloat16 outputs and of probabilities of either side."""
    assert_equal_outputs(have, want, atol=1e-2, rtol=2e-2)


def chosen(device: str, slots: int = SLOTS) -> dict[str, torch.Tensor]:
    """A table of blocks that are all still there."""
    created = torch.arange(1, slots + 1, device=device)
    table = torch.randperm(slots)[:ENTRIES][None].to(device)
    positions = torch.arange(slots * BLOCK, device=device).view(slots, BLOCK)
    return {"table": table, "stamps": created[table], "created": created, "positions": positions}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "groups", "width"), [(9, 3, 64), (32, 8, 128)])
@pytest.mark.parametrize("tokens", [1, 512])
@pytest.mark.parametrize("by", SIDES)
def test_layer(
    benchmark, tokens: int, heads: int, groups: int, width: int, device: str, by: str
) -> None:
    """A layer's whole attention, local part and memory; one token is a decode step."""
    query = normal(1, heads, tokens, width, device=device)
    key, value = (normal(1, groups, SEEN, width, device=device) for _ in range(2))
    stores = [normal(SLOTS, groups, BLOCK, width, device=device) for _ in range(2)]
    blocks, bias = chosen(device), torch.zeros(1, device=device)
    local = torch.empty(PARTS, 1, heads, tokens, width, device=device)
    lse = torch.empty(PARTS, 1, heads, tokens, device=device)
    out, gate = torch.empty_like(query), torch.empty(1, heads, tokens, device=device)

    def ours() -> torch.Tensor:
        attention_partials(query, key, value, out=local, lse=lse)
        return reweave_paged(query, *stores, **blocks, bias=bias, local_out=local, local_lse=lse,
                             out=out, gate=gate)[0]  # fmt: skip

    def plain() -> torch.Tensor:
        read = [
            store[blocks["table"]].transpose(1, 2).flatten(2, 3).contiguous() for store in stores
        ]
        keys, values = torch.cat((read[0], key), 2), torch.cat((read[1], value), 2)
        return F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    read = ENTRIES * BLOCK
    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device, equal=close,
        moved=size(query, key, value, out) + 2 * read * groups * width * query.element_size(),
        flops=4 * heads * tokens * (SEEN + read) * width,
        heads=heads, groups=groups, width=width, tokens=tokens, seen=SEEN, read=read,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hidden", [576, 4096])
@pytest.mark.parametrize("by", SIDES)
def test_residual(benchmark, hidden: int, device: str, by: str) -> None:
    """The residual form of a decode step: softmax over similarities, weighted sum, blend."""
    weight, slots = 0.25, 64
    fresh = normal(1, 1, hidden, device=device)
    states = fresh.clone()
    store = unit(slots, BLOCK, hidden, device=device)
    blocks, share = chosen(device, slots), torch.full((1,), weight, device=device)

    def ours() -> torch.Tensor:
        states.copy_(fresh)
        return reweave_residual_paged(states, store, **blocks, weight=share)

    def plain() -> torch.Tensor:
        read = store[blocks["table"]].flatten(1, 2)
        near = F.normalize(fresh, dim=-1) @ F.normalize(read, dim=-1).mT
        recalled = torch.softmax(near.float(), -1).to(read.dtype) @ read
        return (1 - weight) * fresh + weight * recalled

    read = ENTRIES * BLOCK
    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device, equal=close,
        moved=2 * size(fresh) + read * hidden * store.element_size(), flops=6 * read * hidden,
        hidden=hidden, read=read,
    )  # fmt: skip
