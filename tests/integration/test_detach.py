"""After `detach` the model is as it was, bit for bit, and nothing of ours is left on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import FAMILIES, SLIDING, greedy, padded, stepwise, text


def hooks(model: nn.Module) -> dict[str, int]:
    """Number of hooks of every module that has any, and of those that take keyword arguments."""
    kinds = (
        "_forward_pre_hooks",
        "_forward_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_backward_hooks",
    )
    found = {}
    for name, module in model.named_modules():
        count = sum(len(getattr(module, kind)) for kind in kinds)
        if count:
            found[name] = count
    return found


def attributes(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


def used(memory: cmr.Memory, model: nn.Module) -> None:
    """A memory that has read, recalled, generated and let tokens leave its window."""
    memory.read(text(2, 200, seed=1))
    model(text(2, 40, seed=2))
    greedy(model, text(2, 100, seed=3), tokens=4)
    assert memory.stats()["searches"] > 1


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
@pytest.mark.parametrize("name", FAMILIES + SLIDING)
def test_detach_leaves_nothing(name: str, store: str, tiny: Callable[[str], nn.Module]) -> None:
    model, ids = tiny(name), text(2, 40)
    before = hooks(model), attributes(model), model.config._attn_implementation
    want = model(ids).logits, stepwise(model, ids[:, :8], 4), greedy(model, ids)
    memory = cmr.attach(model, window=64, threshold=0.0, store=store)
    while_attached = hooks(model)
    decoder, layer = model.get_decoder(), f"{memory._core.adapter.family.layers}."
    assert decoder._forward_pre_hooks and decoder._forward_hooks and model._forward_pre_hooks
    assert any(layer in hooked for hooked in while_attached)
    assert attributes(model) != before[1] and "generate" in vars(model)
    used(memory, model)
    memory.detach()
    memory.detach()
    assert (hooks(model), attributes(model), model.config._attn_implementation) == before
    assert not memory.attached
    have = model(ids).logits, stepwise(model, ids[:, :8], 4), greedy(model, ids)
    for one, other in zip(have, want, strict=True):
        assert torch.equal(one, other)


def test_the_residual_form_leaves_nothing(model: nn.Module) -> None:
    before, ids = (hooks(model), attributes(model)), text(2, 40)
    want = model(ids).logits
    with cmr.attach(model, window=64, method="weighted_sum", threshold=0.0) as memory:
        used(memory, model)
        assert not torch.equal(model(ids).logits, want)
    assert (hooks(model), attributes(model)) == before
    assert torch.equal(model(ids).logits, want)


class _BreakError(Exception):
    pass


def test_an_exception_inside_the_block_detaches(model: nn.Module) -> None:
    before, ids = (hooks(model), attributes(model)), text(2, 40)
    want = model(ids).logits
    with pytest.raises(_BreakError), cmr.attach(model, window=64) as memory:
        used(memory, model)
        raise _BreakError
    assert (hooks(model), attributes(model)) == before
    assert torch.equal(model(ids).logits, want)


@pytest.mark.parametrize("depth", [0, 2, 4])
def test_an_exception_inside_a_forward_leaves_a_memory_that_works(
    depth: int, model: nn.Module
) -> None:
    """Whether the look-ahead breaks, or the forward in front of or behind the index layer."""
    ids = text(2, 40)

    def fail(*_: object) -> None:
        raise _BreakError

    plain, before = model(ids).logits, hooks(model)
    with cmr.attach(model, window=64, threshold=0.0, memory_weight=0.8) as memory:
        memory.read(text(2, 200, seed=1))
        want, tokens = model(ids).logits, memory.tokens
        handle = memory._core.adapter.layers[depth].register_forward_hook(fail)
        try:
            with pytest.raises(_BreakError):
                model(ids)
            with pytest.raises(_BreakError):
                memory.read(text(2, 200, seed=3), sessions=["x", "y"])
        finally:
            handle.remove()
        assert memory.tokens == tokens
        assert torch.equal(model(ids).logits, want)
        assert not torch.equal(want, plain)
    assert hooks(model) == before
    assert torch.equal(model(ids).logits, plain)


def test_a_forward_that_broke_is_not_remembered(llama: nn.Module) -> None:
    """Whoever tries again with the rest of the text must not find it stored twice."""

    def fail(*_: object) -> None:
        raise _BreakError

    with cmr.attach(llama, window=64, store="tokens") as memory:
        cache = llama(text(1, 60), use_cache=True).past_key_values
        handle = memory._core.adapter.layers[4].register_forward_hook(fail)
        try:
            with pytest.raises(_BreakError):
                llama(text(1, 60), past_key_values=cache)
        finally:
            handle.remove()
        assert memory.tokens == 0


def test_a_generate_of_the_users_own_comes_back(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = llama.generate, []

    def generate(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        return own(*args, **kwargs)

    # Not by `setattr`, which would leave a method on the instance that other tests share.
    monkeypatch.setitem(vars(llama), "generate", generate)
    with cmr.attach(llama, window=64):
        greedy(llama, text(1, 10))
    assert calls == [1]
    assert llama.generate is generate


def test_a_cache_outlives_its_memory(model: nn.Module) -> None:
    """A bounded cache that the user still holds is an ordinary cache to the plain model."""
    ids = text(1, 60)
    want = stepwise(model, ids, 40)
    with cmr.attach(model, window=64) as memory:
        cache = model(ids[:, :40]).past_key_values
    logits = [model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(40, 60)]
    assert torch.equal(torch.cat(logits, dim=1), want[:, 40:])
    assert memory.tokens == 0


def test_nothing_global_is_patched(tiny: Callable[[str], nn.Module]) -> None:
    """Another model of the same class never notices."""
    one, other = tiny("mistral"), tiny("mistral-sliding")
    ids = text(1, 40)
    want, before = other(ids).logits, (hooks(other), attributes(other))
    with cmr.attach(one, window=64, threshold=0.0) as memory:
        memory.read(text(200))
        one(ids)
        assert torch.equal(other(ids).logits, want)
        assert (hooks(other), attributes(other)) == before
        batch = padded([text(4), text(9)], "left")
        del batch["position_ids"]
        assert greedy(other, **{"ids": batch.pop("input_ids")}, **batch).shape == (2, 12)
