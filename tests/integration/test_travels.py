"""What an attach leaves where it does not belong: in configurations, wrappers and references."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import cmr
from cmr.errors import AttachError, ModelMismatchError
from cmr.integration.reweave.attention import memory_attention
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import READS_ALL, build, greedy, text

SETTINGS: dict[str, Any] = {
    "window": 64,
    "budget": 2048,
    **READS_ALL,
    "target_layers": (0, 1, 2, 3),
}
NAMES = ("llama", "gemma3", "gpt2", "falcon")
"""Attention by transformers' interface, and by a call of PyTorch's own (Falcon)."""


def of_ours(model: nn.Module) -> list[str]:
    """Names of the modules whose configuration names our attention."""
    names = {
        name: getattr(getattr(module, "config", None), "_attn_implementation", "")
        for name, module in model.named_modules()
    }
    return [name for name, implementation in names.items() if implementation.startswith("cmr_")]


@pytest.mark.parametrize("name", NAMES)
def test_no_configuration_taken_from_an_attached_model_has_our_attention(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    own = model.config._attn_implementation
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200))
        attention = memory._core.adapter.attention(0)
        taken = {
            "the model's": model.config,
            "a copy": copy.copy(model.config),
            "a deep copy": copy.deepcopy(model.config),
            "of the attention": copy.deepcopy(attention.config),
            "a shallow one of it": copy.copy(attention.config),
            "pickled": pickle.loads(pickle.dumps(attention.config)),
            "written down": type(model.config).from_dict(model.config.to_dict()),
        }
        if name != "falcon":
            assert of_ours(model), "the model's own attention modules do have it"
    calls: list[int] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return memory_attention(*args, **kwargs)

    interface = __import__("transformers").AttentionInterface
    monkeypatch.setitem(interface._global_mapping, f"cmr_{own}", noted)
    for what, config in taken.items():
        for made in (type(model)(config), AutoModelForCausalLM.from_config(config)):
            assert made.config._attn_implementation == own, what
            assert not of_ours(made), what
            made.eval()(text(1, 8))
    assert not calls


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_says_the_same_attached_or_not(name: str) -> None:
    model = build(name)
    before, ids = (model.config.to_dict(), attributes(model), hooks(model)), text(1, 20)
    implementations = {n: m.config._attn_implementation for n, m in model.named_modules()
                       if hasattr(m, "config")}  # fmt: skip
    with cmr.attach(model, **SETTINGS):
        assert model.config.to_dict() == before[0]
        model(ids)
    assert (model.config.to_dict(), attributes(model), hooks(model)) == before
    assert implementations == {
        n: m.config._attn_implementation for n, m in model.named_modules() if hasattr(m, "config")
    }
    assert not of_ours(model)


def test_what_is_set_on_the_configuration_counts_in_the_attention() -> None:
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory:
        there = memory._core.adapter.attention(2).config
        model.config.attention_dropout, model.config.new_setting = 0.25, "yes"
        assert (there.attention_dropout, there.new_setting) == (0.25, "yes")
        there.new_setting = "no"
        assert model.config.new_setting == "no" and there == model.config
        del there.new_setting
        assert not hasattr(model.config, "new_setting")
        assert repr(there) == repr(model.config)


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_another_implementation_while_paused_is_the_models_own(own: str) -> None:
    model, ids = build("llama"), text(1, 20)
    other = {"sdpa": "eager", "eager": "sdpa"}[own]
    model.set_attn_implementation(other)
    want = model(ids).logits
    model.set_attn_implementation(own)
    plain = model(ids).logits
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200))
        read = model(ids).logits
        model.set_attn_implementation(other)
        with pytest.raises(AttachError, match=rf"set to {other!r}.*set {own!r} back"):
            model(ids)
        with memory.paused():
            assert torch.equal(model(ids).logits, want)
        model.set_attn_implementation(own)
        assert torch.equal(model(ids).logits, read)
        with memory.paused():
            assert torch.equal(model(ids).logits, plain)


def place(model: nn.Module, what: str) -> tuple[Any, str]:
    """The object and the name of a method that an attach wraps."""
    if what == "attention":
        return model.get_decoder().h[1].self_attention, "forward"
    return (model.get_decoder(), "forward") if what == "decoder" else (model, what)


WRAPPED = ("generate", "_get_candidate_generator", "decoder", "attention")


def passing(own: Callable[..., Any], calls: list[str], name: str) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return own(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("what", WRAPPED)
def test_wrappers_of_others_stay_whenever_they_came(what: str) -> None:
    model, ids, calls = build("falcon"), text(1, 12), []
    owner, name = place(model, what)

    def run() -> torch.Tensor:
        calls.clear()
        return model.generate(ids, max_new_tokens=3, do_sample=False, prompt_lookup_num_tokens=2)

    want = run()
    first = passing(getattr(owner, name), calls, "before")
    setattr(owner, name, first)
    memory = cmr.attach(model, **SETTINGS)
    memory.read(text(200))
    second = passing(getattr(owner, name), calls, "after")
    setattr(owner, name, second)
    run()
    assert set(calls) == {"before", "after"}
    memory.detach()
    assert vars(owner)[name] is second
    assert torch.equal(run(), want) and set(calls) == {"before", "after"}
    # Another attach goes around all of it, and back.
    memory.reattach()
    run()
    assert set(calls) == {"before", "after"} and vars(owner)[name] is not second
    memory.detach()
    assert vars(owner)[name] is second
    del owner.__dict__[name]
    assert torch.equal(run(), want) and not calls


@pytest.mark.parametrize("what", WRAPPED)
def test_a_reference_taken_while_attached_works_and_holds_nothing(what: str) -> None:
    model, ids = build("falcon"), text(1, 12)
    owner, name = place(model, what)
    plain = vars(owner).get(name)
    memory = cmr.attach(model, **SETTINGS)
    memory.read(text(200))
    greedy(model, ids)
    taken = getattr(owner, name)
    of_ours = [weakref.ref(x) for x in (memory, memory._core, memory._stepper, memory._core.ring)]
    memory.detach()
    assert vars(owner).get(name) is plain
    del memory
    gc.collect()
    assert not [ref() for ref in of_ours if ref() is not None]
    setattr(owner, name, taken)
    greedy(model, ids)


def test_nothing_piles_up() -> None:
    model = build("falcon")
    before = attributes(model), hooks(model)
    memory = cmr.attach(model, **SETTINGS)
    attached = attributes(model), hooks(model)
    for _ in range(50):
        memory.detach()
        assert (attributes(model), hooks(model)) == before
        memory.reattach()
        assert (attributes(model), hooks(model)) == attached

    def depth() -> int:
        found, inner = 0, model.generate
        while hasattr(inner, "__wrapped__"):
            found, inner = found + 1, inner.__wrapped__
        return found

    there = depth()
    memory.detach()
    assert depth() < there
    memory.reattach()
    assert depth() == there


def test_two_heads_over_one_decoder_have_one_memory() -> None:
    one = build("llama")
    other = type(one)(one.config)
    other.model = one.model
    with cmr.attach(one, **SETTINGS) as memory:
        memory.read(text(200))
        for refused in (lambda: cmr.attach(other, **SETTINGS), lambda: cmr.attach(one)):
            before = attributes(other)
            with pytest.raises(AttachError, match="memory attached already"):
                refused()
            assert attributes(other) == before
        assert memory.tokens == 200
    with cmr.attach(other, **SETTINGS) as memory, pytest.raises(AttachError, match="already"):
        cmr.attach(one)


def test_a_cache_of_another_model_is_refused() -> None:
    one, other, ids = build("llama"), build("llama"), text(1, 10)
    with cmr.attach(one, **SETTINGS) as memory, cmr.attach(other, **SETTINGS) as beside:
        cache = one(text(1, 80), use_cache=True).past_key_values
        before = memory.tokens, beside.tokens
        with pytest.raises(ModelMismatchError, match=r"past_key_values: .* another model"):
            other(ids, past_key_values=cache)
        with beside.paused():
            other(ids, past_key_values=copy.deepcopy(cache))
        assert (memory.tokens, beside.tokens) == before
        one(text(1, 1), past_key_values=cache)
    # What another memory of the same model began goes on, as an ordinary cache.
    with cmr.attach(one, **SETTINGS):
        one(text(1, 1), past_key_values=cache)
