"""An attached memory that reads only some of what it recalls, and its ways of blending states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.config import METHODS, RECONSTRUCTION_METHODS, STATE_METHODS
from cmr.integration.reweave import recall as recalling
from cmr.reconstruction.integrator import ReconstructionIntegrator
from tests.integration.tiny import READS_ALL, greedy, text

Built = Callable[[str], nn.Module]
SETTINGS: dict[str, Any] = {**READS_ALL, "window": 96, "block_size": 16}
TOKENS = 112
QUESTION = text(1, 20, seed=5)


def attached(model: nn.Module, **settings: Any) -> cmr.Memory:
    """A memory that would read all of a text, but for the settings."""
    memory = cmr.attach(model, **{**SETTINGS, **settings})
    memory.read(text(TOKENS, seed=1))
    return memory


def logits(model: nn.Module, **settings: Any) -> torch.Tensor:
    with attached(model, **settings):
        return model(QUESTION).logits


def recall_of(memory: cmr.Memory) -> recalling.Recall:
    assert memory._stepper.last is not None and memory._stepper.last.recall is not None
    return memory._stepper.last.recall


@pytest.mark.parametrize("method", RECONSTRUCTION_METHODS)
@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"max_memory_tokens": 40}, 40),
        ({"compression_ratio": 0.25}, TOKENS // 4),
        ({"max_memory_tokens": 40, "compression_ratio": 0.25}, TOKENS // 4),
        ({"max_memory_tokens": 1}, 1),
    ],
)
def test_no_more_is_read_than_allowed(
    method: str, limits: dict[str, Any], most: int, llama: nn.Module
) -> None:
    with attached(llama) as memory:
        llama(QUESTION)
        whole, held = recall_of(memory).nbytes, sum(p.read for p in memory.recalled[0])
    assert held == TOKENS
    with attached(llama, reconstruction_method=method, **limits) as memory:
        llama(QUESTION)
        recall, passages = recall_of(memory), memory.recalled[0]
        assert recall.layer(3).keys.shape[2] == most
        assert recall.nbytes * TOKENS == whole * most
    assert sum(p.read for p in passages) == most
    told = [at for p in passages for at in p.positions]
    assert len(told) == len(set(told)) and set(told) <= set(range(TOKENS))
    if method in ("attention", "recompute"):
        assert len(told) == most
    if method == "weighted_sum":
        assert len(told) == TOKENS, "everything goes into a sum"


@pytest.mark.parametrize("method", [None, "hierarchical", "weighted_sum"])
@pytest.mark.parametrize("how", METHODS)
def test_a_limit_that_is_not_reached_changes_nothing(
    how: str, method: str | None, llama: nn.Module
) -> None:
    plain = logits(llama, method=how, reconstruction_method=method)
    limited = logits(
        llama,
        method=how,
        reconstruction_method=method,
        max_memory_tokens=TOKENS,
        compression_ratio=1.0,
    )
    assert torch.equal(limited, plain)
    less = logits(llama, method=how, reconstruction_method=method, max_memory_tokens=TOKENS - 1)
    assert not torch.equal(less, plain)


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("method", ["hierarchical", "recompute"])
def test_a_weight_of_zero_changes_no_bit(how: str, method: str, llama: nn.Module) -> None:
    plain = llama(QUESTION).logits
    settings = {"method": how, "reconstruction_method": method, "max_memory_tokens": 9}
    assert torch.equal(logits(llama, memory_weight=0.0, **settings), plain)
    assert not torch.equal(logits(llama, memory_weight=0.9, **settings), plain) or how == "gated"
    assert torch.equal(llama(QUESTION).logits, plain)


@pytest.mark.parametrize("positions", ["constant", "layout", "true"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_left_out_is_as_if_it_were_not_stored(
    name: str, positions: str, tiny: Built
) -> None:
    model = tiny(name)
    limits = {"reconstruction_method": "attention", "max_memory_tokens": 24}
    with attached(model, positions=positions, **limits) as memory:
        found = model(QUESTION).logits
        kept = torch.tensor([at for p in memory.recalled[0] for at in p.positions])
    with attached(model, positions=positions) as memory:
        places = memory._core.ring.positions
        places[~torch.isin(places, kept)] = -1
        hidden = model(QUESTION).logits
        assert sum(p.read for p in memory.recalled[0]) == 24
    torch.testing.assert_close(found, hidden, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(model, positions=positions), atol=1e-3)


@pytest.mark.parametrize("positions", ["constant", "true"])
def test_sums_are_formed_of_keys_before_their_rotation(positions: str, llama: nn.Module) -> None:
    limits = {"reconstruction_method": "weighted_sum", "max_memory_tokens": 30}
    with attached(llama, positions=positions, **limits) as memory:
        llama(QUESTION)
        recall, ring = recall_of(memory), memory._core.ring
        plan = recall.plan
        assert plan is not None and plan.members.shape[2] > 1
        table = recall.choice.table.flatten(1)
        keys, values = ring.gather(4, table)
        places = plan.places(ring.positions[table].flatten(1))
        turn = memory._core.adapter.rotary(4, places)
        read = recall.layer(4)
    want = []
    for members, shares in zip(plan.members[0], plan.shares[0], strict=True):
        inside = members >= 0
        weights = shares[inside].double()
        want.append(
            [(x[0][:, members[inside]].double() * weights[:, None]).sum(1) for x in (keys, values)]
        )
    summed, mixed = (torch.stack(part, dim=1)[None].float() for part in zip(*want, strict=True))
    if positions == "true":
        half = summed.shape[-1] // 2
        turned = torch.cat([-summed[..., half:], summed[..., :half]], dim=-1)
        summed = summed * turn[0][:, None] + turned * turn[1][:, None]
    torch.testing.assert_close(read.keys, summed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read.values, mixed, rtol=1e-4, atol=1e-5)


def test_recomputed_passages_are_those_of_a_store_that_keeps_only_tokens(llama: nn.Module) -> None:
    again = logits(llama, reconstruction_method="recompute", store="kv")
    torch.testing.assert_close(again, logits(llama, store="tokens"), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(again, logits(llama, store="kv"), atol=1e-4)
    limits = {"reconstruction_method": "recompute", "max_memory_tokens": 24}
    some = logits(llama, store="kv", **limits)
    torch.testing.assert_close(some, logits(llama, store="tokens", **limits), rtol=1e-5, atol=1e-5)


def test_recomputed_states_are_those_that_enter_the_layer(llama: nn.Module) -> None:
    settings = {"method": "weighted_sum", "reconstruction_method": "recompute"}
    with attached(llama, recall_context=0, target_layers=(2, 4), **settings) as memory:
        llama(QUESTION)
        held = recall_of(memory).state_rows(4)
        assert [(p.start, p.end) for p in memory.recalled[0]] == [(0, TOKENS)]
    begun = torch.cat([torch.tensor([1]), text(TOKENS, seed=1)])[None]
    states = llama(begun, output_hidden_states=True).hidden_states[4][:, 1:]
    torch.testing.assert_close(held.states[held.mask], states[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", STATE_METHODS)
@pytest.mark.parametrize("method", [None, *RECONSTRUCTION_METHODS])
def test_states_are_blended_as_by_the_integrator(
    how: str, method: str | None, llama: nn.Module
) -> None:
    seen: dict[str, torch.Tensor] = {}

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["states"] = args[0] if args else kwargs["hidden_states"]

    settings = {"method": how, "reconstruction_method": method, "max_memory_tokens": 30}
    if method is None:
        settings.pop("max_memory_tokens")
    with attached(llama, target_layers=(3,), memory_weight=0.4, **settings) as memory:
        hook = llama.model.layers[3].register_forward_pre_hook(note, with_kwargs=True)
        llama(QUESTION)
        hook.remove()
        blended, held = seen["states"], recall_of(memory).state_rows(3)
        gates = memory.recalled[0][0].gate
    plain = llama(QUESTION, output_hidden_states=True).hidden_states[3]
    integrator = ReconstructionIntegrator(64, how, 0.4)
    if method in ("attention", "recompute", "hierarchical"):
        integrator = _summed_like(integrator, method, held)
    expected = integrator(plain, held.states, memory_mask=held.mask)
    torch.testing.assert_close(blended, expected, rtol=1e-4, atol=1e-4)
    if how != "gated":
        assert not torch.allclose(blended, plain, atol=1e-2)
    assert gates >= 0.0


def _summed_like(
    integrator: ReconstructionIntegrator, method: str, held: recalling.StateRows
) -> Callable[..., torch.Tensor]:
    """The integrator with the states as a reconstruction of that method."""

    def blend(hidden: torch.Tensor, states: torch.Tensor, memory_mask: torch.Tensor) -> Any:
        mask = memory_mask[0]
        n = int(mask.sum())
        found = cmr.Reconstruction(
            states=states[0][mask],
            weights=torch.full((n,), 1 / n),
            similarity=torch.zeros(n),
            relevance=torch.zeros(n),
            timestamp=torch.zeros(n),
            passages=held.passages[0][mask],
            layers=torch.full((n,), 3),
            sources=tuple((i,) for i in range(n)),
            method=method,
        )
        return integrator(hidden, found)

    return blend


def test_the_gate_opens_for_a_match_and_stays_shut_without_one(llama: nn.Module) -> None:
    settings = {"method": "gated", "target_layers": (3,), "memory_weight": 0.8}
    plain = llama(QUESTION, output_hidden_states=True)
    entering = plain.hidden_states[3][0]
    with attached(llama, **settings) as memory:
        store = memory._core.ring.keys[3]
        apart = torch.eye(64) - torch.linalg.pinv(entering) @ entering
        store.copy_(torch.randn_like(store) @ apart)
        assert torch.equal(llama(QUESTION).logits, plain.logits), "nothing fits"
        assert memory.recalled[0][0].gate == 0.0
        store[0, 0, :5] = entering[10:15]
        memory._stepper.search_anew()
        assert not torch.equal(llama(QUESTION).logits, plain.logits)
        gate = memory._stepper.last.gates[3][0, 0]
    assert gate[10:15].min() > 0.7 and gate.max() <= 0.8


@pytest.mark.parametrize("how", METHODS)
def test_rows_of_a_batch_are_read_as_if_alone(how: str, llama: nn.Module) -> None:
    settings = {
        **SETTINGS,
        "method": how,
        "reconstruction_method": "hierarchical",
        "max_memory_tokens": 40,
        "compression_ratio": 0.5,
    }
    texts, questions = [text(112, seed=1), text(48, seed=2)], text(2, 20, seed=3)
    alone = []
    for ids, question in zip(texts, questions, strict=True):
        with cmr.attach(llama, **settings) as memory:
            memory.read(ids)
            alone.append(llama(question[None]).logits)
    with cmr.attach(llama, **settings) as memory:
        ids = torch.zeros(2, 112, dtype=torch.int64)
        ids[0], ids[1, :48] = texts[0], texts[1]
        mask = torch.arange(112) < torch.tensor([[112], [48]])
        memory.read(ids, mask)
        together = llama(questions).logits
        read = [sum(p.read for p in row) for row in memory.recalled]
    assert read == [40, 24]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["attention", "residual"])
def test_beams_and_later_searches_keep_to_the_limit(how: str, llama: nn.Module) -> None:
    settings = {"method": how, "reconstruction_method": "hierarchical", "max_memory_tokens": 20}
    with attached(llama, refresh=3, **settings) as memory:
        beams = greedy(llama, QUESTION, num_beams=2)
        assert beams.shape == (1, 12)
        assert [sum(p.read for p in row) for row in memory.recalled] == [20, 20]
        assert memory.stats()["searches"] > 3
        memory.clear()
        memory.read(text(TOKENS, seed=1))
        one = greedy(llama, QUESTION)
        assert [sum(p.read for p in row) for row in memory.recalled] == [20]
    with attached(llama, refresh=3, **settings):
        assert torch.equal(greedy(llama, QUESTION), one)


@pytest.mark.parametrize("how", ["attention", "weighted_sum"])
@pytest.mark.parametrize("method", ["attention", "weighted_sum"])
def test_blocks_read_in_place_hold_the_same(
    how: str, method: str, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": how, "reconstruction_method": method, "max_memory_tokens": 21}
    rows = logits(llama, **settings)
    monkeypatch.setattr(recalling, "in_place", lambda device: True)
    with attached(llama, **settings) as memory:
        blocks = llama(QUESTION).logits
        if how == "attention":
            held = recall_of(memory).layer(3)
            assert isinstance(held, recalling.LayerBlocks)
            assert held.keys.shape[:3] == (2, 2, 16) and int((held.positions >= 0).sum()) == 21
    torch.testing.assert_close(blocks, rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", METHODS)
def test_what_is_stored_later_is_never_read_in_its_place(how: str, llama: nn.Module) -> None:
    settings = {"method": how, "reconstruction_method": "hierarchical", "max_memory_tokens": 30}

    def step(tamper: bool) -> torch.Tensor:
        with attached(llama, **settings) as memory:
            out = llama(QUESTION, use_cache=True)
            if tamper:  # as if somebody else's text had taken the slots
                for part in (*memory._core.ring.keys.values(), *memory._core.ring.values.values()):
                    part.fill_(3.0)
            cache = out.past_key_values
            cache.reorder_cache(torch.tensor([0]))
            return llama(text(1, 1, seed=8), past_key_values=cache).logits

    assert torch.equal(step(True), step(False))


def test_gradients_flow_through_every_way_of_blending(llama: nn.Module) -> None:
    for how in STATE_METHODS:
        with torch.enable_grad(), attached(llama, method=how, max_memory_tokens=30) as memory:
            embeddings = llama.get_input_embeddings()(QUESTION).detach().requires_grad_()
            found = llama(inputs_embeds=embeddings, use_cache=False).logits
            assert recall_of(memory).plan is not None
            found.sum().backward()
        assert embeddings.grad is not None and embeddings.grad.isfinite().all()
    llama.zero_grad(set_to_none=True)  # others share the model


@pytest.mark.parametrize("how", STATE_METHODS)
def test_blending_needs_states(how: str, llama: nn.Module) -> None:
    with pytest.raises(cmr.ConfigError, match=f"method='{how}'.*'auto' or 'states'.*got 'kv'"):
        cmr.attach(llama, method=how, store="kv")
