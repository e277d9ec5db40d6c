"""The search of an attached memory: strategies, budgets, its cache, and whose memory it finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cmr
from cmr.config import STRATEGIES
from cmr.errors import ConfigError
from tests.integration.tiny import VOCABULARY

SETTINGS: dict[str, Any] = {"window": 64, "left_context": 16, "budget": 2048, "threshold": 0.0}
SHORT = 16


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, block_size=SHORT, **SETTINGS) as memory:
        yield memory


def recalled(memory: cmr.Memory, ids: torch.Tensor) -> list[Any]:
    memory._core.adapter.model(input_ids=ids[None])
    return memory.recalled[0] if memory.recalled else []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_finds_what_is_asked_for(llama: nn.Module, strategy: str) -> None:
    ids = text(900, 1)
    with cmr.attach(llama, strategy=strategy, block_size=SHORT, blocks=1, **SETTINGS) as memory:
        memory.read(ids)
        for at in (128, 320, 640):
            passages = recalled(memory, ids[at : at + 24])
            assert passages, strategy
            if strategy != "multi_criteria":  # which weighs recency and relevance, too
                assert any(p.start < at + 24 and p.end > at for p in passages), (strategy, at)


def test_settings_of_a_request_hold_inside_only(memory: cmr.Memory) -> None:
    ids = text(900, 2)
    memory.read(ids)
    plain = memory._core.adapter.model(input_ids=ids[None, 100:140]).logits
    with memory.retrieval(blocks=0):
        assert not recalled(memory, ids[100:140])
        alone = memory._core.adapter.model(input_ids=ids[None, 100:140]).logits
    memory.pause()
    assert torch.equal(alone, memory._core.adapter.model(input_ids=ids[None, 100:140]).logits)
    memory.resume()
    with memory.retrieval(blocks=4, gain=0.0, neighbours=0):
        many = recalled(memory, ids[100:140])
    with memory.retrieval(strategy="hybrid_ensemble", blocks=1):
        assert len(recalled(memory, ids[100:140])) == 1
    assert len(many) > 1
    again = memory._core.adapter.model(input_ids=ids[None, 100:140]).logits
    assert torch.equal(plain, again) and not torch.equal(plain, alone)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "multi_critera"},
        {"blocks": -1},
        {"criteria_weights": {"recency": -1.0}},
        {"criteria_weights": {"novelty": 1.0}},
        {"index_layer": 2},
        {"gain": 2.0},
    ],
)
def test_a_wrong_setting_of_a_request_is_refused_before_anything_changes(
    memory: cmr.Memory, wrong: dict[str, Any]
) -> None:
    before = memory._core.retriever
    with pytest.raises(ConfigError), memory.retrieval(**wrong):
        raise AssertionError("never reached")
    assert memory._core.retriever is before


def test_an_unknown_task_is_named(memory: cmr.Memory) -> None:
    ids = text(300, 3)
    memory.read(ids)
    with (
        memory.retrieval("dialog", strategy="task_specific"),
        pytest.raises(ConfigError, match="dialogue"),
    ):
        recalled(memory, ids[40:60])
    with memory.retrieval("dialogue", strategy="task_specific"):
        assert recalled(memory, ids[40:60])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_memory_recalls_nothing(llama: nn.Module, strategy: str) -> None:
    ids = text(40, 4)
    plain = llama(input_ids=ids[None]).logits
    with cmr.attach(llama, strategy=strategy, cache_size=4, **SETTINGS) as memory:
        assert torch.equal(llama(input_ids=ids[None]).logits, plain)
        assert not any(memory.recalled)


def test_the_cache_answers_until_something_is_written_or_forgotten(llama: nn.Module) -> None:
    ids = text(900, 5)
    with cmr.attach(llama, cache_size=8, block_size=SHORT, **SETTINGS) as memory:
        memory.read(ids[:500])
        cache = memory._core.retriever.cache

        def ask() -> torch.Tensor:
            return llama(input_ids=ids[None, 100:140], use_cache=False).logits

        first = ask()
        assert torch.equal(first, ask())
        assert (cache.stats()["hits"], cache.stats()["misses"]) == (1, 1)
        with memory.retrieval(blocks=1):
            ask()
        assert cache.stats()["hits"] == 1
        memory.read(ids[500:])
        ask()
        assert (cache.stats()["hits"], cache.stats()["misses"]) == (1, 3)
        memory.forget("0")
        assert len(cache) == 0
        assert memory.stats()["cache"] == cache.stats()


@settings(deadline=None, max_examples=12)
@given(
    strategy=st.sampled_from(STRATEGIES),
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "ask", "forget", "ask"]), st.integers(0, 2)),
        min_size=4,
        max_size=9,
    ),
)
def test_a_session_is_never_found_from_another(tiny: Any, strategy: str, steps: Any) -> None:
    model, names = tiny("llama"), ("anna", "bert", "cleo")
    cached = {**SETTINGS, "budget": 320, "cache_size": 8, "max_clusters": 4}
    with cmr.attach(model, strategy=strategy, block_size=SHORT, **cached) as memory:
        core = memory._core
        for number, (what, who) in enumerate(steps):
            name = names[who]
            if what == "forget":
                if name in memory.sessions:
                    memory.forget(name)
                continue
            with memory.session(name, create=True):
                if what == "read":
                    memory.read(text(120, 10 * number + who))
                else:
                    model(input_ids=text(30, 999)[None], use_cache=False)
                    step = core.retriever and memory._stepper.last
                    if step is not None and step.recall is not None:
                        slots = step.recall.choice.table
                        owners = core.ring.session[slots[slots >= 0]].unique().tolist()
                        assert owners in ([], [core.table.find(name)])
