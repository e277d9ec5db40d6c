"""Layers that ran ahead of a search are not run again, wherever that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.integration.hooks import first_layers
from cmr.integration.hooks.first_layers import FirstLayers
from tests.integration.tiny import FAMILIES, OTHERS, OTHERS_SLIDING, SLIDING, padded, text

pytestmark = pytest.mark.filterwarnings("ignore:target_layers=:cmr.CMRWarning")

SETTINGS: dict[str, Any] = {
    "window": 64, "memory_weight": 0.8, "threshold": 0.0, "target_layers": (2, 3), "sink_guard": 0,
    "index_layer": 3,
}  # fmt: skip


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, **SETTINGS) as attached:
        attached.read(text(2, 200, seed=1), sessions=["anna", "ben"])
        asked(attached, text(2, 20, seed=9))  # the first one ever measures what it needs
        yield attached


@contextmanager
def runs(model: nn.Module) -> Iterator[dict[int, int]]:
    """How often the inside of each layer runs; no hook of PyTorch, which would be looked after."""
    counts: dict[int, int] = {}
    layers = model.model.layers
    owns = [layer.mlp.forward for layer in layers]

    def counted(number: int) -> Callable[..., torch.Tensor]:
        def forward(states: torch.Tensor) -> torch.Tensor:
            counts[number] = counts.get(number, 0) + 1
            return owns[number](states)

        return forward

    for number, layer in enumerate(layers):
        layer.mlp.forward = counted(number)
    try:
        yield counts
    finally:
        for layer in layers:
            del layer.mlp.forward


def asked(memory: cmr.Memory, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a prompt that reads anna's and ben's memory."""
    with memory.session("anna", "ben"):
        return memory._core.adapter.model(ids).logits


def untouched(model: nn.Module) -> bool:
    return not any("forward" in vars(layer) for layer in model.model.layers)


def test_a_prompt_runs_them_once(llama: nn.Module, memory: cmr.Memory) -> None:
    with runs(llama) as counts:
        asked(memory, text(2, 20, seed=2))
    # The third one reads memory and runs ahead, too, as the index layer stands behind it.
    assert counts == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert untouched(llama)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *((name, "alike") for name in (*FAMILIES, *SLIDING, *OTHERS, *OTHERS_SLIDING)),
        *((name, "padded") for name in (*FAMILIES, *SLIDING)),
    ],
)
def test_logits_are_those_of_running_them_twice(
    name: str, rows: str, tiny: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a second prompt, whose window has let go of tokens."""
    model = tiny(name)
    given = (
        {"input_ids": text(2, 50, seed=2)}
        if rows == "alike"
        else padded([text(1, 50, seed=2)[0], text(1, 31, seed=3)[0]], "left")
    )
    found = []
    for twice in (False, True):
        with monkeypatch.context() as patch:
            if twice:
                patch.setattr(FirstLayers, "_run_in_both", lambda *_: True)
            with cmr.attach(model, **SETTINGS) as memory:
                memory.read(text(2, 200, seed=1), sessions=["anna", "ben"])
                with memory.session("anna", "ben"):
                    out = model.generate(
                        **given, max_new_tokens=24, do_sample=False, output_logits=True,
                        return_dict_in_generate=True,
                    )  # fmt: skip
                    again = model(text(2, 30, seed=3), past_key_values=out.past_key_values)
                found.append((torch.stack(out.logits), again.logits))
    for once, twice in zip(*found, strict=True):
        assert torch.equal(once, twice)


def test_what_a_hook_inside_sees_is_what_it_saw_before(
    llama: nn.Module, memory: cmr.Memory
) -> None:
    seen: list[torch.Tensor] = []
    handle = llama.model.layers[1].mlp.register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        with runs(llama) as counts:
            asked(memory, text(2, 20, seed=2))
    finally:
        handle.remove()
    assert counts[1] == len(seen) == 2 and torch.equal(*seen)


def test_states_that_are_changed_go_through_every_layer(
    llama: nn.Module, memory: cmr.Memory
) -> None:
    """An intervention does not reach the passes that memory runs for itself."""
    ids = text(2, 20, seed=2)
    plain = asked(memory, ids)
    with cmr.HookManager(llama) as hooks:
        hooks.intervene("more", 0, lambda states, _: states + 0.5)
        changed = asked(memory, ids)
        memory.pause()
        alone = llama(ids).logits
        memory.resume()
    assert not torch.allclose(changed, plain, atol=1e-2)
    assert not torch.allclose(alone, changed, atol=1e-2)


def test_gradients_reach_the_first_layer(llama: nn.Module, memory: cmr.Memory) -> None:
    with torch.enable_grad():
        asked(memory, text(2, 20, seed=2)).sum().backward()
    weight = llama.model.layers[0].mlp.up_proj.weight
    assert weight.grad is not None and bool(weight.grad.any())
    llama.zero_grad(set_to_none=True)


def test_whoever_wants_what_is_inside_gets_it(llama: nn.Module, memory: cmr.Memory) -> None:
    ids = text(2, 20, seed=2)
    with memory.session("anna", "ben"), runs(llama) as counts:
        out = llama(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 7 and counts[0] == 2
    assert torch.equal(out.logits, asked(memory, ids))


def test_more_than_is_kept_runs_twice(
    llama: nn.Module, memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text(2, 20, seed=2)
    plain = asked(memory, ids)
    monkeypatch.setattr(first_layers, "MOST_BYTES", 2 * 20 * 64 * 4)
    with runs(llama) as counts:
        assert torch.equal(asked(memory, ids), plain)
    assert counts[0] == 1 and counts[1] == 2


def test_passages_that_keep_no_states_do_not_take_them(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run through the model between the search and the forward that it is for."""
    found, ran = [], []
    for twice in (False, True):
        with monkeypatch.context() as patch, runs(llama) as counts:
            if twice:
                patch.setattr(FirstLayers, "_run_in_both", lambda *_: True)
            with cmr.attach(llama, **SETTINGS, store="tokens") as memory:
                memory.read(text(1, 200, seed=1), sessions=["anna"])
                counts.clear()
                with memory.session("anna"):
                    found.append(llama(text(1, 20, seed=2)).logits)
                assert memory.recalled[0]
            ran.append(counts)
    assert torch.equal(*found)
    assert ran[0][0] == ran[1][0] - 1 == 3 and ran[0][5] == ran[1][5] == 1


@pytest.mark.parametrize("number", [0, 1, 4])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_where_a_forward_breaks_off(
    llama: nn.Module, memory: cmr.Memory, number: int, error: type[BaseException]
) -> None:
    ids = text(2, 20, seed=2)
    plain = asked(memory, ids)
    mlp, left = llama.model.layers[number].mlp, [1 if number < 2 else 0]
    own = mlp.forward

    def breaks(states: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise error("broken")
        return own(states)

    mlp.forward = breaks
    try:
        with pytest.raises(error), memory.session("anna", "ben"):
            llama(ids, use_cache=number == 4)
            llama(ids)
    finally:
        del mlp.forward
    assert untouched(llama)
    assert torch.equal(asked(memory, ids), plain)


def test_a_detach_in_between_leaves_no_trace(llama: nn.Module, memory: cmr.Memory) -> None:
    handle = llama.model.layers[3].register_forward_hook(lambda *_: memory.detach())
    try:
        asked(memory, text(2, 20, seed=2))
    finally:
        handle.remove()
    assert untouched(llama) and not memory.attached
