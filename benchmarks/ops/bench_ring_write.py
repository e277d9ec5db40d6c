"""Blocks into the ring: `pytest benchmarks/ops/bench_ring_write.py`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.ops.measure import BLOCK, DEVICES, SIDES, measure, normal, size
from cmr.kernels.ring_write import ring_write_heads, ring_write_index

SLOTS = 2048


def where(blocks: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots, the last one at the ring's end, and the blocks of the text in their order."""
    slots = torch.arange(SLOTS - blocks, SLOTS, device=device)
    return slots, torch.arange(blocks, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("groups", "width"), [(3, 64), (8, 128)])
@pytest.mark.parametrize("tokens", [BLOCK, 16 * BLOCK])
@pytest.mark.parametrize("by", SIDES)
def test_keys_and_values(
    benchmark, tokens: int, groups: int, width: int, device: str, by: str
) -> None:
    """One layer's keys, un-rotated, and values: a block that leaves the window, a piece read."""
    shape = SLOTS, groups, BLOCK, width
    key_store = torch.zeros(shape, device=device, dtype=torch.bfloat16)
    value_store = torch.zeros_like(key_store)
    keys, values = (normal(1, groups, tokens, width, device=device) for _ in range(2))
    angles = torch.randn(1, tokens, width // 2).repeat(1, 1, 2).to(device)
    cos, sin = angles.cos(), angles.sin()
    slots, pick = where(tokens // BLOCK, device)

    def written() -> tuple[torch.Tensor, torch.Tensor]:
        return key_store[slots], value_store[slots]

    def ours() -> None:
        ring_write_heads(key_store, value_store, slots, pick, keys, values, cos, sin)

    def plain() -> None:
        wide = keys.float()
        first, second = wide.chunk(2, -1)
        turned = (wide * cos + torch.cat((second, -first), -1) * sin) / (cos**2 + sin**2)
        for store, new in ((key_store, turned.to(keys.dtype)), (value_store, values)):
            store[slots] = new[0].unflatten(1, (-1, BLOCK)).transpose(0, 1)

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device, written=written,
        moved=2 * size(keys, values) + size(cos, sin), flops=6 * keys.numel(),
        tokens=tokens, groups=groups, width=width,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hidden", [576, 4096])
@pytest.mark.parametrize("tokens", [BLOCK, 16 * BLOCK])
@pytest.mark.parametrize("by", SIDES)
def test_index(benchmark, tokens: int, hidden: int, device: str, by: str) -> None:
    """States scaled to norm 1 into the index."""
    index = torch.zeros(SLOTS, BLOCK, hidden, device=device, dtype=torch.bfloat16)
    states = normal(1, tokens, hidden, device=device)
    slots, pick = where(tokens // BLOCK, device)

    def ours() -> None:
        ring_write_index(index, None, slots, pick, states)

    def plain() -> None:
        unit = F.normalize(states[0].float(), dim=-1).to(index.dtype)
        index[slots] = unit.unflatten(0, (-1, BLOCK))

    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device, written=lambda: index[slots],
        moved=2 * size(states), flops=3 * states.numel(), tokens=tokens, hidden=hidden,
    )  # fmt: skip
