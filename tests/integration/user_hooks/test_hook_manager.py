"""Hooks by name: what they show, what they change, and that nothing of them stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr import HookManager
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import SPAN, greedy, text

ALWAYS: dict[str, Any] = {"window": 64, "memory_weight": 0.8, "threshold": 0.0}


@pytest.fixture
def manager(llama: nn.Module) -> Iterator[HookManager]:
    with HookManager(llama) as manager:
        yield manager


def double(states: torch.Tensor, _: int) -> torch.Tensor:
    return states * 2


def add(states: torch.Tensor, _: int) -> torch.Tensor:
    return states + 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_states_entering_and_leaving(name: str, tiny: Callable[[str], Any]) -> None:
    model, ids = tiny(name), text(2, 20)
    want = model(ids, output_hidden_states=True).hidden_states
    depth = len(want) - 1
    with HookManager(model) as manager:
        into = manager.capture("into", [0, 2, depth])
        out = manager.capture("out", [1, depth - 1], where="leaving")
        every = manager.capture("every", 1, keep="all")
        taken: list[tuple[int, torch.Size]] = []
        manager.capture("mine", 2, into=lambda layer, x: taken.append((layer, x.shape)))
        model(ids[:, :3])
        model(ids)
        assert all(torch.equal(into.values[n], want[n]) for n in into.layers)
        assert torch.equal(out.values[1], want[2])
        assert not torch.equal(out.values[depth - 1], into.values[depth])  # in front of the norm
        assert torch.equal(every.values[1][1], want[1]) and len(every.values[1]) == 2
        assert taken == [(2, every.values[1][0].shape), (2, want[2].shape)]


def test_an_intervention_is_what_the_layer_gets(llama: nn.Module, manager: HookManager) -> None:
    ids = text(1, 12)
    plain = llama(ids, output_hidden_states=True)
    seen = manager.capture("seen", [2, 3])
    manager.intervene("double", 2, double)
    out = llama(ids)
    assert torch.equal(seen.values[2], plain.hidden_states[2] * 2)
    assert not torch.equal(out.logits, plain.logits)
    manager.disable("double")
    assert torch.equal(llama(ids).logits, plain.logits)
    manager.enable("double")
    assert torch.equal(llama(ids).logits, out.logits)


def test_the_order_decides(llama: nn.Module, manager: HookManager) -> None:
    ids = text(1, 12)
    before = llama(ids, output_hidden_states=True).hidden_states[2]
    seen = manager.capture("seen", 2)
    manager.intervene("add", [1, 2], add, order=2)
    manager.disable("add")
    manager.intervene("double", 2, double, order=1)
    manager.enable("add")
    manager.intervene("undo", 1, lambda states, _: states - 1, order=3)
    llama(ids)
    assert torch.allclose(seen.values[2], before * 2 + 1, atol=1e-5)
    manager.remove("add")
    manager.remove("undo")
    manager.intervene("add", 2, add, order=0)
    llama(ids)
    assert torch.allclose(seen.values[2], (before + 1) * 2, atol=1e-5)


def test_conflicts(llama: nn.Module, manager: HookManager) -> None:
    manager.intervene("first", [2, 3], double, order=1)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: manager.intervene("other", 3, add), r"'other' meets 'first' on layers \[3\]"),
        (lambda: manager.intervene("other", [1, 2], add, order=1), "an order of its own"),
        (lambda: manager.intervene("first", 4, add), "named 'first' already"),
        (lambda: manager.capture("", 1), "a name"),
        (lambda: manager.capture("far", 7), r"0\.\.6 expected on this model, got 7"),
        (lambda: manager.capture("far", 6, where="leaving"), r"0\.\.5"),
        (lambda: manager.intervene("far", 6, add), r"0\.\.5"),
        (lambda: manager.capture("no", 1, where="inside"), "where"),
        (lambda: manager.capture("no", 1, keep="some"), "keep"),
        (lambda: manager.intervene("no", 1, None), "a function"),  # type: ignore[arg-type]
        (lambda: manager.custom("no", "model.layer.1", print), "did you mean 'model.layers.1'"),
        (lambda: manager.custom("no", "lm_head", print, "before"), "kind"),
        (lambda: manager.remove("frist"), "did you mean 'first'"),
        (lambda: manager.enable("none"), "known: first"),
    ]
    for call, match in cases:
        with pytest.raises(cmr.ConfigError, match=match):
            call()
        assert list(manager.hooks) == ["first"] and len(manager) == 1
    manager.disable("first")
    manager.intervene("other", 3, add)
    with pytest.raises(cmr.ConfigError, match="meets 'other'"):
        manager.enable("first")


def test_a_layer_that_memory_blends_into(llama: nn.Module, manager: HookManager) -> None:
    with cmr.attach(llama, method="weighted_sum", target_layers=[2, 3]):
        with pytest.raises(cmr.ConfigError, match=r"blends states into layers \[2\]"):
            manager.intervene("mine", [1, 2], add)
        manager.intervene("mine", [1, 4], add)
    with cmr.attach(llama, target_layers=[2, 3]):
        manager.intervene("other", [2], add)


@pytest.mark.parametrize("bad", ["shape", "dtype", "none"])
def test_an_intervention_that_gives_something_else(
    bad: str, llama: nn.Module, manager: HookManager
) -> None:
    change = {
        "shape": lambda states, _: states[:, 1:],
        "dtype": lambda states, _: states.double(),
        "none": lambda states, _: None,
    }[bad]
    manager.intervene("mine", 2, change)
    with pytest.raises((TypeError, ValueError), match="intervention 'mine'"):
        llama(text(1, 5))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-sliding", "mistral-sliding"])
def test_attention_patterns(name: str, tiny: Callable[[str], Any]) -> None:
    """Those that the eager implementation gives; the model's own result stays, to the bit."""
    model, ids = tiny(name), text(2, 40)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    want, own = model(ids, attention_mask=mask).logits, model.config._attn_implementation
    model.set_attn_implementation("eager")
    weights = model(ids, attention_mask=mask, output_attentions=True).attentions
    model.set_attn_implementation(own)
    with HookManager(model) as manager:
        found = manager.attention("patterns", [0, 1, 3])
        assert torch.equal(model(ids, attention_mask=mask).logits, want)
        real = mask.bool()[:, None, :, None]
        for layer in found.layers:
            have = found.values[layer]
            assert have.shape == weights[layer].shape and have.dtype == torch.float32
            assert torch.allclose(have * real, weights[layer] * real, atol=1e-5)
        assert 2 not in found.values
        out = model(ids[:, :-1], use_cache=True)
        model(ids[:, -1:], past_key_values=out.past_key_values)
        assert found.values[0].shape[2:] == (1, SPAN if name.endswith("sliding") else 40)
    assert model.config._attn_implementation == own


def test_patterns_and_a_memory_come_and_go_in_any_order(llama: nn.Module) -> None:
    ids, before = text(1, 20), (hooks(llama), attributes(llama))
    own, want = llama.config._attn_implementation, llama(ids).logits
    for first in ("memory", "patterns"):
        for gone in ("memory", "patterns"):
            manager = HookManager(llama)
            if first == "patterns":
                manager.attention("patterns", 3)
            memory = cmr.attach(llama, **ALWAYS)
            if first == "memory":
                manager.attention("patterns", 3)
            memory.read(text(1, 60, seed=1))
            recalled = llama(ids).logits
            assert memory.recalled[0] and not torch.equal(recalled, want)
            weights = manager.hooks["patterns"].values[3]
            assert torch.allclose(weights.sum(-1), torch.ones(1, 4, 20), atol=1e-5)
            if gone == "memory":
                memory.detach()
                manager.hooks["patterns"].values.clear()
                assert torch.equal(llama(ids).logits, want) and manager.hooks["patterns"].values
                manager.remove_all()
            else:
                manager.remove_all()
                assert torch.equal(llama(ids).logits, recalled)
                memory.detach()
            assert llama.config._attn_implementation == own
            assert (hooks(llama), attributes(llama)) == before


def test_a_family_whose_attention_cannot_be_seen(tiny: Callable[[str], Any]) -> None:
    with HookManager(tiny("falcon")) as manager:
        with pytest.raises(cmr.UnsupportedModelError, match=r"falcon.*AttentionInterface"):
            manager.attention("patterns", 1)
        assert not len(manager)


def test_the_flow_of_gradients(llama: nn.Module, manager: HookManager) -> None:
    ids, depth = text(1, 20), 6
    flow = manager.gradients("flow", [1, 3, depth], keep="all")
    with torch.enable_grad():
        out = llama(ids, labels=ids, output_hidden_states=True)
        states = [out.hidden_states[n] for n in flow.layers]
        want = torch.autograd.grad(out.loss, states, retain_graph=True)
        flow.values.clear()
        out.loss.backward()
    llama.zero_grad()
    for layer, gradient in zip(flow.layers, want, strict=True):
        assert flow.values[layer] == [pytest.approx(float(gradient.norm()), rel=1e-5)]
    llama(ids)
    assert len(flow.values[1]) == 1


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "backward"])
def test_custom_hooks(kind: str, llama: nn.Module, manager: HookManager) -> None:
    calls: list[int] = []
    manager.custom("mine", "model.layers.2.mlp", lambda *args: calls.append(len(args)), kind)
    ids = text(1, 8)
    with torch.enable_grad():
        llama(ids, labels=ids).loss.backward()
    llama.zero_grad()
    assert calls == [2 if kind == "forward_pre" else 3]
    manager.disable("mine")
    llama(ids)
    manager.remove("mine")
    llama(ids)
    assert len(calls) == 1


def test_what_a_custom_hook_returns_counts(llama: nn.Module, manager: HookManager) -> None:
    want = llama(text(1, 8)).logits
    manager.custom("half", "lm_head", lambda module, args, out: out / 2)
    assert torch.equal(llama(text(1, 8)).logits, want / 2)


def test_nothing_stays(tiny: Callable[[str], Any]) -> None:
    """Also after an exception."""
    model, ids = tiny("mistral"), text(1, 12)
    before, own = (hooks(model), attributes(model)), model.config._attn_implementation
    want = model(ids).logits, greedy(model, ids)
    with pytest.raises(RuntimeError, match="on purpose"), HookManager(model) as manager:
        manager.capture("states", [0, 3, 6])
        manager.intervene("double", 1, double)
        manager.attention("patterns", [2])
        manager.gradients("flow", [2, 6])
        for kind in ("forward", "forward_pre", "backward"):
            manager.custom(kind, "model.layers.4", lambda *_: None, kind)
        assert not torch.equal(model(ids).logits, want[0])
        raise RuntimeError("on purpose")
    assert (hooks(model), attributes(model)) == before and not len(manager)
    assert model.config._attn_implementation == own
    assert torch.equal(model(ids).logits, want[0]) and torch.equal(greedy(model, ids), want[1])


def test_beside_a_memory(llama: nn.Module, manager: HookManager) -> None:
    """A memory's own passes are not captured; an intervention changes what is searched for."""
    ids = text(1, 20)
    every = manager.capture("every", 1, keep="all")
    with cmr.attach(llama, **ALWAYS) as memory:
        memory.read(text(1, 200, seed=1))
        assert not every.values
        plain = llama(ids).logits
        assert len(every.values[1]) == 1 and memory.recalled[0]
        scores = [passage.score for passage in memory.recalled[0]]
        manager.intervene("noise", 1, lambda states, _: states + torch.ones(64) * 5)
        assert not torch.equal(llama(ids).logits, plain)
        assert [passage.score for passage in memory.recalled[0]] != scores
        manager.remove("noise")
        assert torch.equal(llama(ids).logits, plain)
