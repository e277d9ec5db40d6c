"""Layers that let go at once hold what each would hold that lets go by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.window.local_window import LocalWindow
from cmr.integration.window.settling import settle
from cmr.integration.window.sink_turns import AHEAD, SinkTurns
from cmr.integration.window.window_layer import adopt


def run(model: nn.Module, sinks: int, together: bool) -> tuple[DynamicCache, list[Any]]:
    """A cache that several pieces went through, and what left it."""
    left: list[Any] = []
    window = LocalWindow(
        ModelAdapter(model), window=16, sinks=sinks, block=4, padding=[0, 0],
        on_leave=lambda layer, keys, values: left.append((layer, keys.clone(), values.clone())),
    )  # fmt: skip
    cache = adopt(DynamicCache(config=model.config), window)
    torch.manual_seed(0)
    with torch.no_grad():
        for tokens in (9, 9, 1, 14, 1, 1, 1, 1, 1):
            window.deferred = together
            model(torch.randint(0, 200, (2, tokens)), past_key_values=cache, use_cache=True)
            if together:
                settle(cache.layers)
    return cache, left


@pytest.mark.parametrize("sinks", [0, 3])
def test_all_at_once_is_as_each_by_itself(llama: nn.Module, sinks: int) -> None:
    have, went = run(llama, sinks, together=True)
    want, gone = run(llama, sinks, together=False)
    assert have.layers[0].left == want.layers[0].left > 0
    for mine, other in zip(have.layers, want.layers, strict=True):
        assert torch.equal(mine.keys, other.keys) and torch.equal(mine.values, other.values)
    by_layer = sorted(gone, key=lambda x: x[0]), sorted(went, key=lambda x: x[0])
    for (layer, *tensors), (number, *others) in zip(*by_layer, strict=True):
        assert layer == number
        assert all(torch.equal(x, y) for x, y in zip(tensors, others, strict=True))


def test_angles_that_were_made_ahead_are_those_of_each_amount(llama: nn.Module) -> None:
    adapter = ModelAdapter(llama)
    turns, device = SinkTurns(adapter, 4), torch.device("cpu")
    for amount in (4, 8, 4 * AHEAD - 4, 4 * AHEAD, 4, 7):
        want = adapter.shift(0, torch.tensor([amount]))
        for mine, other in zip(turns.by(0, amount, 100, device), want, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
