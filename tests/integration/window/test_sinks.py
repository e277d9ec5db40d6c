"""The first token of every text that was read is recalled, and never read: an attention sink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import READS_ALL, text

SECOND = 40
"""Tokens of the first text; the second one's first token is in the middle of what is stored."""


def read_twice(model: nn.Module, **settings: Any) -> cmr.Memory:
    memory = cmr.attach(model, window=64, **{**READS_ALL, "sink_guard": 1, **settings})
    memory.read(text(1, SECOND, seed=1))
    memory.read(text(1, 30, seed=2))
    return memory


def read_by_layers(memory: cmr.Memory) -> set[int]:
    """Positions, in the session's text, of the tokens that layers read in the last forward."""
    return {position for passage in memory.recalled[0] for position in passage.positions}


@pytest.mark.parametrize(
    "settings",
    [
        {"store": "kv"},
        {"store": "states"},
        {"store": "tokens"},
        {"method": "weighted_sum"},
        {"max_memory_tokens": 64},
        {"budget": 64, "working_budget": 128},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_first_token_of_each_text_is_not_read(
    settings: dict[str, Any], llama: nn.Module
) -> None:
    with read_twice(llama, **settings) as memory:
        llama(text(1, 20, seed=3))
        read = read_by_layers(memory)
        recalled = {p for passage in memory.recalled[0] for p in range(passage.start, passage.end)}
    assert {0, SECOND} <= recalled
    assert not read & {0, SECOND}
    assert read
    if "max_memory_tokens" not in settings:
        assert read == recalled - {0, SECOND}


def test_who_reads_in_place_does_not_find_it(tiny: Callable[[str], nn.Module]) -> None:
    with read_twice(tiny("llama"), method="weighted_sum") as memory:
        tiny("llama")(text(1, 20, seed=3))
        held = memory._stepper.last.recall.stored_states(0)
        shown = held.positions[held.table[held.table >= 0]]
    assert not set(shown.flatten().tolist()) & {0, SECOND}
    assert (memory._core.ring.positions == SECOND).any()  # it is stored


def test_without_a_guard_everything_is_read(llama: nn.Module) -> None:
    with read_twice(llama, sink_guard=0) as memory:
        llama(text(1, 20, seed=3))
        assert {0, SECOND} <= read_by_layers(memory)


def test_its_state_and_its_values_change_nothing(llama: nn.Module) -> None:
    ids = text(1, 20, seed=3)
    with read_twice(llama) as memory:
        want = llama(ids).logits
        ring = memory._core.ring
        slot, column = (ring.positions == SECOND).nonzero()[0].tolist()
        for store in (ring.keys, ring.values):
            for tensor in store.values():
                tensor[slot, :, column] = 1e3
        memory._stepper.search_anew()
        assert torch.equal(llama(ids).logits, want)
