"""Attached, read or asked in `torch.inference_mode()`, and used outside of it afterwards."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import text
from tests.integration.window.test_cache_contract import SETTINGS, go_on
from tests.kernels.helpers.compare import assert_close


def inside(yes: bool) -> AbstractContextManager[None]:
    return torch.inference_mode() if yes else nullcontext()


def story(model: nn.Module, ways: tuple[bool, ...], **settings: object) -> torch.Tensor:
    """Attach, read, ask, decode, in inference mode or not; then everything without it."""
    attach, read, ask, decode = ways
    ids, more = text(1, 40, seed=4), text(1, 70, seed=5)
    with torch.enable_grad():
        with inside(attach):
            memory = cmr.attach(model, **{**SETTINGS, **settings})
        with memory:
            with inside(read):
                memory.read(text(1, 120, seed=1), sessions=["anna"])
            with memory.session("anna"):
                with inside(ask):
                    cache = model(ids, use_cache=True).past_key_values
                with inside(decode):
                    go_on(model, cache, more[:, :20])
                logits = go_on(model, cache, more[:, 20:])
                assert memory.recalled[0]
                model.zero_grad()
                model(ids, labels=ids).loss.backward()
                assert any(w.grad is not None for w in model.parameters())
            memory.read(text(1, 120, seed=2), sessions=["anna"])
            with inside(read):
                memory.absorb(cache)
            memory.forget("anna")
    model.zero_grad(set_to_none=True)
    return logits.detach()


NEVER = (False,) * 4
ONE = [tuple(at == one for at in range(4)) for one in range(4)]


@pytest.mark.parametrize("ways", [*ONE, (True,) * 4], ids=str)
def test_each_step_of_a_story(ways: tuple[bool, ...], llama: nn.Module) -> None:
    assert_close("logits", story(llama, ways), story(llama, NEVER), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"store": "states"},
        {"store": "tokens"},
        {"method": "gated"},
        {"max_memory_tokens": 16},
        {"knn": True},
        {"budget": 64, "working_budget": 64, "long_term_budget": 256},
        {"strategy": "hierarchical"},
    ],
    ids=str,
)
def test_other_memories(settings: dict[str, object], llama: nn.Module) -> None:
    story(llama, (True,) * 4, **settings)
