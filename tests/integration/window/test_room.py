"""A window that grows in place: what it holds stays where it is, and is never written over."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.cost import addresses
from cmr.integration.decoder.adapter import ModelAdapter
from tests.integration.window.test_cache import windowed

BLOCK = 8


def token() -> torch.Tensor:
    return torch.randn(1, 2, 1, 16)


@pytest.fixture
def cache(llama: nn.Module) -> Any:
    """Of 12 tokens, one of which came by itself."""
    cache = windowed(ModelAdapter(llama), [0], [])
    with torch.no_grad():
        cache.update(torch.randn(1, 2, 11, 16), torch.randn(1, 2, 11, 16), 0)
        cache.update(token(), token(), 0)
    return cache


@torch.no_grad()
def test_a_token_is_put_behind_what_is_held(cache: Any) -> None:
    layer = cache.layers[0]
    keys, values = layer.keys, layer.values
    at, before = keys.data_ptr(), (keys.clone(), values.clone())
    new = [(token(), token()) for _ in range(BLOCK - 1)]
    for pair in new:
        shown = cache.update(*pair, 0)
        assert shown[0].data_ptr() == layer.keys.data_ptr() == at
    assert keys.equal(before[0]) and values.equal(before[1]), "what was given is as it was"
    assert layer.keys.equal(torch.cat([keys, *(key for key, _ in new)], dim=2))
    assert layer.values.equal(torch.cat([values, *(value for _, value in new)], dim=2))
    cache.update(token(), token(), 0)
    assert layer.keys.data_ptr() != at and layer.keys[:, :, :12].equal(before[0]), "no more room"


@torch.no_grad()
def test_room_holds_nothing(cache: Any) -> None:
    """Memory as it comes may hold what was forgotten."""
    for whole in cache.layers[0]._room._whole:
        assert whole.shape[2] == 12 + BLOCK - 1
        assert whole[:, :, :12].all() and not whole[:, :, 12:].any()


@torch.no_grad()
def test_what_was_taken_back_is_not_written_over(cache: Any) -> None:
    layer = cache.layers[0]
    seen = layer.keys, layer.keys.clone()
    cache.crop(-1)
    cache.update(token(), token(), 0)
    assert seen[0].equal(seen[1]) and not layer.keys.equal(seen[1])
    assert layer.keys[:, :, :11].equal(seen[1][:, :, :11])


@torch.no_grad()
def test_what_somebody_else_put_there_is_what_goes_on(cache: Any) -> None:
    layer = cache.layers[0]
    layer.keys = torch.zeros_like(layer.keys)
    cache.update(token(), token(), 0)
    assert not layer.keys[:, :, :12].any() and layer.values[:, :, :12].all()


@torch.no_grad()
def test_copies_go_on_apart(cache: Any) -> None:
    other = copy.deepcopy(cache)
    ones, twos = torch.ones(1, 2, 1, 16), torch.full((1, 2, 1, 16), 2.0)
    cache.update(ones, ones, 0)
    other.update(twos, twos, 0)
    cache.update(ones, ones, 0)
    for each, last in ((cache, ones), (other, twos)):
        layer = each.layers[0]
        assert layer.keys[:, :, 12:13].equal(last) and layer.values[:, :, 12:13].equal(last)
    assert cache.layers[0].keys[:, :, :12].equal(other.layers[0].keys[:, :, :12])


def test_with_a_graph_nothing_is_written_in_place(cache: Any) -> None:
    layer = cache.layers[0]
    with torch.no_grad():
        cache.update(token(), token(), 0)
    new = token().requires_grad_()
    with torch.enable_grad():
        shown = cache.update(new, new, 0)
        square = (shown[0] ** 2).sum()
    with torch.no_grad():
        cache.update(token(), token(), 0)
        cache.update(token(), token(), 0)
    square.backward()
    assert new.grad is not None and new.grad.equal(2 * new.detach())
    assert layer.keys.shape[2] == 16


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.no_grad])
def test_modes_may_change(first: Any, then: Any, cache: Any) -> None:
    layer = cache.layers[0]
    cache.crop(-1)  # the next token is put into a room of its own
    with first():
        cache.update(token(), token(), 0)
    at, held = layer.keys.data_ptr(), layer.keys.clone()
    with then():
        cache.update(token(), token(), 0)
    assert layer.keys.data_ptr() == at and layer.keys[:, :, :12].equal(held)
    assert not layer.keys.is_inference()


@torch.no_grad()
def test_what_left_is_not_kept_alive(llama: nn.Module) -> None:
    left: list[Any] = []
    cache = windowed(ModelAdapter(llama), [0], left)
    layer = cache.layers[0]
    for _ in range(36):
        cache.update(token(), token(), 0)
    room = weakref.ref(layer._room._whole[0])
    assert not left and room() is not None
    cache.update(token(), token(), 0)
    assert len(left) == 1
    left.clear()
    gc.collect()
    assert room() is None


def test_most_addresses_of_a_step_stay() -> None:
    """With a window of 64 and blocks of 32 the window moves in one step of 32."""
    moves = addresses.moves(97, 64)
    assert moves.pop("window keys") <= 4 and moves.pop("window values") <= 4
    for name in ("stored keys", "stored values", "created", "out", "gate"):
        assert moves.pop(name) == 0, name
    assert moves.pop("cosines") == moves.pop("sines") == 96, "they may be called fixed now"
    assert all(0 < count < 10 for count in moves.values()), moves  # at a search


def test_all_addresses_of_a_recorded_step_stay() -> None:
    """Of what it reads from outside, while blocks leave three times and six searches find more."""
    moves = addresses.moves(97, 64, graphs=True)
    assert len(moves) == 11 and not any(moves.values()), moves
