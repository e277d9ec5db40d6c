"""`method="weighted_sum"`: the residual form runs, and is what its equation says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cmr


def test_states_are_blended_by_cosine_with_the_fixed_gate(model: nn.Module) -> None:
    text, question = torch.randint(0, 200, (64,)), torch.randint(0, 200, (1, 20))
    seen: dict[str, torch.Tensor] = {}
    with cmr.attach(
        model,
        method="weighted_sum",
        memory_weight=0.3,
        target_layers=(3,),
        threshold=0.0,
        sink_guard=0,
        window=96,
        left_context=0,
    ) as memory:
        memory.read(text)
        layer = memory._core.adapter.layers[3]
        before = layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(
                blended=args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        model(question)
        before.remove()
        recalled = memory.recalled[0]
        stored = memory._core.ring.keys[3][:2].reshape(1, 64, -1)
        memory.pause()
        plain = model(question, output_hidden_states=True).hidden_states[3]
    assert [(p.start, p.end) for p in recalled] == [(0, 64)]
    cosine = F.normalize(plain, dim=-1) @ F.normalize(stored, dim=-1).mT
    expected = 0.7 * plain + 0.3 * torch.softmax(cosine, -1) @ stored
    torch.testing.assert_close(seen["blended"], expected, rtol=1e-4, atol=1e-4)


def test_the_residual_form_changes_logits_and_leaves_no_trace(model: nn.Module) -> None:
    text, question = torch.randint(0, 200, (300,)), torch.randint(0, 200, (1, 20))
    plain = model(question).logits
    with cmr.attach(model, method="weighted_sum", threshold=0.0, window=96) as memory:
        assert torch.equal(model(question).logits, plain), "an empty memory changes nothing"
        memory.read(text)
        assert memory.stats()["store"] == "states"
        assert not torch.allclose(model(question).logits, plain)
    assert torch.equal(model(question).logits, plain)
    assert not any(layer._forward_pre_hooks for layer in memory._core.adapter.layers)


def test_the_residual_form_needs_states(llama: nn.Module) -> None:
    with pytest.raises(cmr.ConfigError, match="store 'auto' or 'states' expected, got 'kv'"):
        cmr.attach(llama, method="weighted_sum", store="kv")
    assert not hasattr(llama, "_cmr_memory")
