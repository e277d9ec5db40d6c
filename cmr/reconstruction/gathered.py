"""`Gathered`: entries of a memory as tensors, token by token in the order of their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from cmr.errors import ConfigError
from cmr.memory.entry import MemoryEntry
from cmr.memory.state_checks import expect_device, expect_dtype, expect_states


@dataclass(frozen=True)
class Gathered:
    """Stored states `[n, hidden]` in the order of their texts, with columns `[n]` on the CPU.

    `runs` number the runs of text, 0 the first, and `sources` the places in the list of entries.
    """

    states: torch.Tensor
    runs: torch.Tensor
    relevance: torch.Tensor
    timestamp: torch.Tensor
    layers: torch.Tensor
    sources: torch.Tensor

    @classmethod
    def of_states(cls, states: torch.Tensor, hidden: int, layer: int | None) -> Gathered:
        """States `[n, hidden]` as one run of text; each row is its own source."""
        expect_states("memories", states, hidden, (2,))
        n = len(states)
        layers = torch.full((n,), -1 if layer is None else layer)
        zeros = torch.zeros(n, dtype=torch.int64)
        # Nothing is known of them: the middle of the scale, and no time.
        half, clock = torch.full((n,), 0.5), torch.zeros(n, dtype=torch.float64)
        return cls(states, zeros, half, clock, layers, torch.arange(n))

    @classmethod
    def of_entries(
        cls, entries: Sequence[MemoryEntry], hidden: int, layer: int | None, like: torch.Tensor
    ) -> Gathered:
        """Entries of a layer (None: of any); those that follow each other in a text are one run."""
        # `like` has the device where states must be, and the data type where there are none.
        for entry in entries:
            if not isinstance(entry, MemoryEntry):
                raise TypeError(f"memories: MemoryEntry expected, got {type(entry).__name__}")
            expect_states("hidden_state", entry.hidden_state, hidden, (1, 2))
            expect_device("hidden_state", entry.hidden_state, like.device)
            first = entries[0].hidden_state
            expect_dtype("hidden_state", entry.hidden_state, first, "of the first entry")
        places = [i for i, entry in enumerate(entries) if layer in (None, entry.layer_idx)]
        # By text and place, so that neighbours come one after the other.
        places.sort(key=lambda i: (*_text(entries[i]), entries[i].position_idx))
        chosen = [entries[i] for i in places]
        runs: list[int] = []
        before: MemoryEntry | None = None
        for entry in chosen:
            begins = before is None or not _follows(entry, before)
            runs.append((runs[-1] if runs else -1) + begins)
            before = entry
        sizes = torch.tensor([_tokens(entry) for entry in chosen], dtype=torch.int64)

        def spread(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(sizes)

        states = [entry.hidden_state.reshape(-1, hidden) for entry in chosen]
        return cls(
            torch.cat(states) if states else like.new_empty(0, hidden),
            spread(runs, torch.int64),
            spread([entry.relevance_score for entry in chosen], torch.float32),
            spread([entry.timestamp for entry in chosen], torch.float64),
            spread([entry.layer_idx for entry in chosen], torch.int64),
            spread(places, torch.int64),
        )

    def best_first(self, matches: torch.Tensor) -> tuple[Gathered, torch.Tensor]:
        """Runs in the order of their best match, numbered anew; equally good ones as they come."""
        if not len(matches):
            return self, matches
        number = int(self.runs.max()) + 1
        best = torch.full((number,), float("-inf"))
        best.scatter_reduce_(0, self.runs, matches, "amax")
        place = torch.empty(number, dtype=torch.int64)
        place[best.argsort(descending=True, stable=True)] = torch.arange(number)
        ranks = place[self.runs]
        order = ranks.argsort(stable=True)
        columns = {name: column[order.to(column.device)] for name, column in vars(self).items()}
        return Gathered(**{**columns, "runs": ranks[order]}), matches[order]

    def recomputed(self, model: Any, entries: Sequence[MemoryEntry]) -> Gathered:
        """The same tokens with states from a forward of a decoder over each run of text."""
        for i in sorted(set(self.sources.tolist())):
            tokens = _tokens(entries[i])
            if len(entries[i].token_ids) != tokens:
                raise ConfigError(
                    f"reconstruction_method='recompute': entries with the ids of their tokens "
                    f"expected, got {len(entries[i].token_ids)} ids for {tokens} states"
                )
        # A beginning-of-text token is the attention sink of each run, where the model has one.
        begin = getattr(model.config.get_text_config(decoder=True), "bos_token_id", None)
        front = [begin] if isinstance(begin, int) else []
        device = model.get_input_embeddings().weight.device
        states = torch.empty_like(self.states)
        # A memory that recalled or captured here would make the states depend on what it holds.
        with _resting(model), torch.no_grad():
            for run in range(int(self.runs.max()) + 1 if len(self.runs) else 0):
                rows = (self.runs == run).nonzero()[:, 0]
                places = self.sources[rows].unique_consecutive().tolist()
                ids = front + [token for i in places for token in entries[i].token_ids]
                found = model(
                    input_ids=torch.tensor([ids], device=device),
                    use_cache=False,
                    output_hidden_states=True,
                ).hidden_states[int(self.layers[rows[0]])]
                states[rows.to(states.device)] = found[0, len(front) :].to(states)
        return replace(self, states=states)


def _text(entry: MemoryEntry) -> tuple[int, int]:
    return entry.sequence_id, entry.layer_idx


def _tokens(entry: MemoryEntry) -> int:
    return 1 if entry.hidden_state.ndim == 1 else len(entry.hidden_state)


def _follows(entry: MemoryEntry, before: MemoryEntry) -> bool:
    end = before.position_idx + _tokens(before)
    return _text(entry) == _text(before) and entry.position_idx == end


@contextmanager
def _resting(model: Any) -> Iterator[None]:
    """A memory attached to the model neither captures nor recalls inside."""
    # Found by its attribute: reconstruction does not know what is attached, or how.
    memory = getattr(model, "_cmr_memory", None)
    if memory is None or not memory.stats()["active"]:
        yield
        return
    memory.pause()
    try:
        yield
    finally:
        memory.resume()
