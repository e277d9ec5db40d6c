"""Training while a memory is attached: gradients are right, or it is said why there are none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import LAYERS, READS_ALL, build, text
from tests.integration.window.test_cache_contract import remembering
from tests.kernels.helpers.compare import assert_close


@pytest.fixture
def trained(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """A model of one's own: nobody else sees its mode or its gradients."""
    with torch.enable_grad():
        yield build(getattr(request, "param", "llama")).train()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("store", ["kv", "states"])
def test_gradients_are_those_of_attention_over_memory_and_window(
    store: str, trained: nn.Module
) -> None:
    """What was recalled counts as data: its keys and values have no gradient."""
    whole = text(1, 120)
    model = trained.eval()
    with torch.no_grad():
        past = model(whole[:, :96], use_cache=True).past_key_values
    want = model(whole[:, 96:], past_key_values=past, labels=whole[:, 96:]).loss
    expected = gradients(model, want)
    settings = {"window": 128, "left_context": 0, "positions": "true", **READS_ALL}
    with cmr.attach(model, **settings, store=store) as memory:
        memory.read(whole[:, :96])
        model.train()
        places = torch.arange(96, 120)[None]
        have = model(whole[:, 96:], position_ids=places, labels=whole[:, 96:]).loss
        found = gradients(model, have)
        assert set(memory._stepper.last.gates) == set(LAYERS)
    assert_close("loss", have, want, atol=1e-4, rtol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(name, found[name], gradient, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
def test_texts_longer_than_the_window_are_trained_on(store: str, trained: nn.Module) -> None:
    """What leaves is stored without its graph, and one recall serves several backward passes."""
    with remembering(trained, store=store, refresh=50) as memory, memory.session("anna"):
        before = memory.tokens
        for seed in range(2):
            ids = text(1, 100, seed=seed)
            assert all(
                g.isfinite().all()
                for g in gradients(trained, trained(ids, labels=ids).loss).values()
            )
        assert memory.tokens > before
        assert not any(part.requires_grad for part in memory._core.ring.parts[0].values())
        with torch.no_grad():
            cache = trained(text(1, 20), use_cache=True).past_key_values
        for at in range(3):
            out = trained(text(1, 1, seed=at), past_key_values=cache)
            gradients(trained, out.logits.square().mean())
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        assert memory.recalled[0]


@pytest.mark.parametrize("method", ["attention", "gated"])
def test_gradient_checkpointing_is_refused_where_memory_is_read(
    method: str, trained: nn.Module
) -> None:
    ids = text(1, 20)
    with remembering(trained, method=method) as memory:
        trained.gradient_checkpointing_enable()
        with pytest.raises(cmr.AttachError, match=r"model\.eval\(\) for reading"):
            memory.read(ids)
        own = trained(ids, labels=ids).loss
        assert gradients(trained, own), "a session without memory is the model's own"
        with memory.session("anna"):
            with pytest.raises(cmr.AttachError, match="gradient_checkpointing_disable"):
                trained(ids, labels=ids)
            with memory.retrieval(blocks=0):
                assert torch.equal(trained(ids, labels=ids).loss, own)
            with torch.no_grad():
                assert not torch.equal(trained(ids, labels=ids).loss, own)
            trained.gradient_checkpointing_disable()
            assert not torch.equal(trained(ids, labels=ids).loss, own)


@pytest.mark.parametrize(
    ("trained", "name"),
    [("llama", "attention_dropout"), ("gpt2", "attn_pdrop")],
    indirect=["trained"],
)
def test_dropout_that_keeps_memory_out_is_said_once(name: str, trained: nn.Module) -> None:
    ids = text(1, 20)
    setattr(trained.config, name, 0.1)
    with remembering(trained) as memory, memory.session("anna"):
        trained.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error", cmr.CMRWarning)
            trained(ids)
        trained.train()
        with pytest.warns(cmr.CMRWarning, match=r"model\.eval\(\)"):
            trained(ids)
        with warnings.catch_warnings():
            warnings.simplefilter("error", cmr.CMRWarning)
            trained(ids)
