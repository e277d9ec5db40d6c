"""Entries of a memory as tensors: runs of text, each token with what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cmr.errors import ModelMismatchError
from cmr.memory.entry import MemoryEntry
from cmr.memory.state_checks import expect_device, expect_states


@dataclass(frozen=True)
class Gathered:
    """Stored states in the order of their texts.

    Attributes:
        states: `[n, hidden]`.
        runs: `[n]` int64, 0 for the tokens of the first run of text, and so on.
        relevance: `[n]` float32.
        timestamp: `[n]` float64.
        layers: `[n]` int64.
        sources: `[n]` int64 place in the list of entries.
    """

    states: torch.Tensor
    runs: torch.Tensor
    relevance: torch.Tensor
    timestamp: torch.Tensor
    layers: torch.Tensor
    sources: torch.Tensor

    def order(self, rows: torch.Tensor) -> Gathered:
        """The given rows in their order."""
        return Gathered(
            self.states[rows.to(self.states.device)],
            self.runs[rows],
            self.relevance[rows],
            self.timestamp[rows],
            self.layers[rows],
            self.sources[rows],
        )


def gather_states(states: torch.Tensor, hidden: int, layer: int | None) -> Gathered:
    """States `[n, hidden]` as one run of text; each row is its own source."""
    expect_states("memories", states, hidden, (2,))
    n = len(states)
    layers = torch.full((n,), -1 if layer is None else layer)
    zeros = torch.zeros(n, dtype=torch.int64)
    half, clock = torch.full((n,), 0.5), torch.zeros(n, dtype=torch.float64)
    return Gathered(states, zeros, half, clock, layers, torch.arange(n))


def gather_entries(
    entries: Sequence[MemoryEntry], hidden: int, layer: int | None, like: torch.Tensor
) -> Gathered:
    """Entries in the order of their texts; those that follow each other there are one run.

    Args:
        entries: of any sequence and layer; `hidden_state` is `[hidden]` or `[tokens, hidden]`.
        hidden: width that is expected.
        layer: entries of other layers are left out; None: none is.
        like: says on which device the states have to be, and their data type if there are none.

    Raises:
        TypeError: something is no entry, or its state no tensor of floats.
        ModelMismatchError: a width, device or data type is another one.
    """
    for entry in entries:
        if not isinstance(entry, MemoryEntry):
            raise TypeError(f"memories: MemoryEntry expected, got {type(entry).__name__}")
        expect_states("hidden_state", entry.hidden_state, hidden, (1, 2))
        expect_device("hidden_state", entry.hidden_state, like.device)
        if entry.hidden_state.dtype != entries[0].hidden_state.dtype:
            raise ModelMismatchError(
                f"hidden_state: dtype {entries[0].hidden_state.dtype} (of the first entry) "
                f"expected, got {entry.hidden_state.dtype}"
            )
    places = [i for i, entry in enumerate(entries) if layer in (None, entry.layer_idx)]
    places.sort(key=lambda i: (*_text(entries[i]), entries[i].position_idx))
    states: list[torch.Tensor] = [like.new_empty(0, hidden)] if not places else []
    sizes, runs, run = [], [], -1
    for at, i in enumerate(places):
        entry = entries[i]
        before = None if at == 0 else entries[places[at - 1]]
        if before is None or not _follows(entry, before):
            run += 1
        states.append(entry.hidden_state.reshape(-1, hidden))
        sizes.append(len(states[-1]))
        runs.append(run)
    repeat = torch.tensor(sizes, dtype=torch.int64)

    def spread(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(repeat)

    return Gathered(
        torch.cat(states),
        spread(list(runs), torch.int64),
        spread([entries[i].relevance_score for i in places], torch.float32),
        spread([entries[i].timestamp for i in places], torch.float64),
        spread([entries[i].layer_idx for i in places], torch.int64),
        spread(list(places), torch.int64),
    )


def _text(entry: MemoryEntry) -> tuple[int, int]:
    return entry.sequence_id, entry.layer_idx


def _follows(entry: MemoryEntry, before: MemoryEntry) -> bool:
    tokens = 1 if before.hidden_state.ndim == 1 else len(before.hidden_state)
    end = before.position_idx + tokens
    return _text(entry) == _text(before) and entry.position_idx == end
