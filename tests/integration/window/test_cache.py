"""The bounded cache by itself: what it holds, hands on and says of its length."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.window.local_window import LocalWindow
from cmr.integration.window.window_layer import adopt
from cmr.kernels.attention import rotate
from tests.kernels.helpers.compare import assert_error_at_most_twice

Left = list[tuple[int, torch.Tensor, torch.Tensor]]


def windowed(
    adapter: ModelAdapter, padding: list[int], left: Left, window: int = 32, sinks: int = 4
) -> DynamicCache:
    owner = LocalWindow(
        adapter,
        window=window,
        sinks=sinks,
        block=8,
        padding=padding,
        on_leave=lambda *going: left.append(going),
    )
    return adopt(DynamicCache(), owner)


def test_sinks_gather_no_rounding_errors(llama: nn.Module) -> None:
    """After hundreds of turns they are as exact as after a single one."""
    adapter, left = ModelAdapter(llama), []
    cache = windowed(adapter, [0], left)
    layer = cache.layers[2]
    first = torch.randn(1, 2, 4, 16).bfloat16()
    layer.update(first, first)
    for _ in range(900):
        new = torch.randn(1, 2, 4, 16).bfloat16()
        layer.update(new, new)
    assert layer.left == 3600 + 4 - layer.keys.shape[2] and len(left) > 400
    amount = torch.tensor([layer.left])
    exact = rotate(first.double(), *adapter.shift(2, amount))
    assert_error_at_most_twice(
        "sinks", layer.keys[:, :, :4], exact.bfloat16(), exact.double(), floor=0.0
    )
    assert torch.equal(layer.values[:, :, :4], first)


@pytest.mark.parametrize("new", [1, 3, 50])
def test_everything_that_comes_leaves_in_order(new: int, llama: nn.Module) -> None:
    adapter, left = ModelAdapter(llama), []
    cache = windowed(adapter, [0, 0], left)
    marks = torch.arange(300.0).view(1, 1, 300, 1).expand(2, 2, 300, 16)
    for start in range(0, 300, new):
        part = marks[:, :, start : start + new]
        expected, offset = cache.layers[0].get_mask_sizes(part.shape[2])
        keys, values = cache.update(part, part, 0)
        assert keys.shape[2] == values.shape[2] == expected
        assert expected + offset == cache.get_seq_length() == min(300, start + new)
        assert cache.layers[0].keys.shape[2] <= 36
    gone = torch.cat([values for _, _, values in left], dim=2)
    held = cache.layers[0].values
    assert torch.equal(torch.cat([held[:, :, :4], gone, held[:, :, 4:]], dim=2), marks)
    assert all(values.shape[2] % 8 == 0 for _, _, values in left)


def test_a_reset_cache_starts_again(llama: nn.Module) -> None:
    adapter, left = ModelAdapter(llama), []
    cache = windowed(adapter, [0], left)
    for _ in range(2):
        for _ in range(30):
            part = torch.randn(1, 2, 4, 16)
            cache.update(part, part, 0)
        assert (cache.get_seq_length(), cache.layers[0].left) == (120, 88)
        cache.reset()
        assert cache.get_seq_length() == 0


def test_sinks_follow_their_beams(llama: nn.Module) -> None:
    adapter, left = ModelAdapter(llama), []
    cache, other = windowed(adapter, [0, 0], left), windowed(adapter, [0, 0], left)
    swap = torch.tensor([1, 0])
    for step in range(40):
        part = torch.randn(2, 2, 4, 16)
        mine = part if step < 20 else part[swap]
        cache.update(mine, mine, 0)
        other.update(part, part, 0)
        if step == 19:
            cache.reorder_cache(swap)
    assert torch.equal(cache.layers[0].keys, other.layers[0].keys[swap])
