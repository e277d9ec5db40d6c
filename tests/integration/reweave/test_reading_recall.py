"""`read(recall=True)`: a piece reads what older pieces stored, and never its own window."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import cmr

SETTINGS: dict[str, Any] = {
    "window": 128,
    "left_context": 32,
    "budget": 2048,
    "threshold": 0.0,
    "memory_weight": 0.5,
}


def stored_keys(model: nn.Module, text: torch.Tensor, recall: bool) -> tuple[torch.Tensor, int]:
    """Keys of a late layer in the order of the text, and how many searches there were."""
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text, recall=recall)
        blocks = len(memory.entries())
        return memory._core.ring.keys[4][:blocks].clone(), memory.stats()["searches"]


def test_recall_while_reading_is_off_by_default_and_changes_what_is_stored(
    llama: nn.Module,
) -> None:
    text = torch.randint(0, 200, (480,))
    plain, none = stored_keys(llama, text, recall=False)
    recalling, searches = stored_keys(llama, text, recall=True)
    assert none == 0
    assert searches == 4  # five pieces of 96 tokens; the first has nothing to ask with
    assert torch.equal(plain[:3], recalling[:3]), "the first piece has nothing to recall"
    assert not torch.allclose(plain[6:], recalling[6:], atol=1e-4)


def test_a_piece_never_recalls_what_its_own_window_still_holds(llama: nn.Module) -> None:
    text = torch.randint(0, 200, (480,))
    with cmr.attach(llama, **SETTINGS) as memory:
        chosen = []
        search = memory._core.retriever.search

        def note(ask: Any, ring: Any) -> Any:
            choice = search(ask, ring)
            starts = choice.table[0, :, memory.config.retrieval.neighbours]
            reach = ring.positions[starts[starts >= 0]].amax()
            chosen.append((int(reach), int(ask.before[0])))
            return choice

        memory._core.retriever.search = note  # type: ignore[method-assign]
        memory.read(text, recall=True)
    assert [before for _, before in chosen] == [64, 160, 256, 352]
    assert all(reach < before for reach, before in chosen)


def test_pieces_are_whole_blocks_so_that_no_block_is_cut_short(llama: nn.Module) -> None:
    with cmr.attach(llama, window=150, left_context=32, budget=2048) as memory:
        memory.read(torch.randint(0, 200, (600,)))
        lengths = [len(entry.token_ids) for entry in memory.entries()]
    assert lengths[:-1] == [32] * 18
    assert lengths[-1] == 600 - 18 * 32
