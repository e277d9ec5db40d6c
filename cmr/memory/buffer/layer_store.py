"""One layer of a `LayeredMemoryBuffer`: single states in preallocated tensors."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import torch
import torch.nn.functional as F

from cmr.kernels import cosine_topk, inverse_norm, quantise_rows
from cmr.memory.duplicates import NO_TOKEN
from cmr.memory.eviction import Candidates
from cmr.memory.sessions import NO_SESSION

RECENT, WORKING, LONG_TERM = range(3)
# What is known of each entry beside its state.
COLUMNS = {
    "sequence": torch.int64,
    "position": torch.int64,
    "token_id": torch.int64,
    "created": torch.int64,
    "last_access": torch.int64,
    "access_count": torch.int64,
    "relevance": torch.float32,
    "tier": torch.int64,
}
# Cosine from which on two states of a token are the same.
SAME = 0.999
_COMPARED = 1024  # states with all others at once, so that the cosines stay small
_EMPTY = {"sequence": NO_SESSION, "position": -1, "token_id": NO_TOKEN}
# One count for all layers: a version tells apart what two layers held at any time.
_VERSIONS = itertools.count(1)


class LayerStore:
    """The entries of one layer. Columns are on the CPU, states where they are searched.

    Of at most `full_rows` entries the states are kept as they are, and of those in the long-term
    tier as int8 codes with a scale each. With `full_rows` None every entry is kept as it is.
    `version` is larger after each change of what is stored (not of how it was used), and never the
    same in two layers.
    """

    def __init__(
        self,
        slots: int,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        full_rows: int | None,
    ) -> None:
        self.slots, self.hidden, self.dtype, self.device = slots, hidden, dtype, device
        # Whether the long-term tier is kept in 8 bits.
        self.reduces = full_rows is not None
        rows = slots if full_rows is None else min(full_rows, slots)
        self.columns = {
            name: torch.full((slots,), _EMPTY.get(name, 0), dtype=kind)
            for name, kind in COLUMNS.items()
        }
        self.held, self.by_tier, self.version = 0, [0, 0, 0], next(_VERSIONS)
        at: dict[str, Any] = {"device": device}
        self._states = torch.zeros(rows, hidden, dtype=dtype, **at)
        self._inverse_norm = torch.zeros(rows, **at)
        coded = slots if self.reduces else 0
        self._codes = torch.zeros(coded, hidden, dtype=torch.int8, **at)
        self._scale, self._code_norm = torch.zeros(coded, **at), torch.zeros(coded, **at)
        # The row in `_states` of each slot; -1: the slot is empty, or its state is in codes.
        self._row = torch.full((slots,), -1)
        # Heaps: the lowest free place is taken first, so that searches look at few slots.
        self._free, self._free_rows = list(range(slots)), list(range(rows))

    @property
    def nbytes(self) -> int:
        """Bytes of all preallocated tensors."""
        tensors = [*self._device_tensors(), *self.columns.values(), self._row]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _device_tensors(self) -> tuple[torch.Tensor, ...]:
        return (self._states, self._inverse_norm, self._codes, self._scale, self._code_norm)

    def find(self, sequence: int | None = None, tier: int | None = None) -> torch.Tensor:
        """Slots of all entries, or of those of a sequence or a tier, `[k]` int64, rising."""
        wanted = self.columns["created"] > 0
        if sequence is not None:
            wanted &= self.columns["sequence"] == sequence
        if tier is not None:
            wanted &= self.columns["tier"] == tier
        return wanted.nonzero().view(-1)

    def candidates(self, slots: torch.Tensor) -> Candidates:
        """What eviction looks at."""
        names = ("sequence", "created", "last_access", "access_count", "relevance")
        parts = [self.columns[name][slots] for name in names]
        parts.append(torch.zeros(len(slots), dtype=torch.bool))  # none is pinned
        return Candidates(*parts)

    def duplicates(self) -> torch.Tensor:
        """Slots of entries for which a newer one has the same sequence, token and state."""
        slots = self.find()
        # Newest first, so that of equals the first one stays.
        slots = slots[self.columns["created"][slots].argsort(descending=True)]
        owner, token = (self.columns[name][slots] for name in ("sequence", "token_id"))
        states = F.normalize(self.states(slots).float(), dim=-1)
        again = torch.zeros(len(slots), dtype=torch.bool)
        for start in range(0, len(slots), _COMPARED):
            part = slice(start, start + _COMPARED)
            alike = (states[part] @ states.T >= SAME).cpu()
            alike &= (owner[part, None] == owner) & (token[part, None] == token)
            newer = torch.arange(len(slots)) < torch.arange(start, start + len(alike))[:, None]
            again[part] = (alike & newer).any(1)
        return slots[again]

    # -- writing ---------------------------------------------------------------------------------

    def write(self, states: torch.Tensor, **columns: torch.Tensor | int) -> torch.Tensor:
        """Store `[k, hidden]` states in the lowest free slots of the first tier; returns slots."""
        self.version = next(_VERSIONS)
        slots = torch.tensor([heapq.heappop(self._free) for _ in range(len(states))])
        for name, values in columns.items():
            self.columns[name][slots] = torch.as_tensor(values, dtype=COLUMNS[name])
        self._put(slots, states)
        self.held += len(slots)
        self.by_tier[RECENT] += len(slots)
        return slots

    def restore(
        self, slots: torch.Tensor, columns: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]
    ) -> None:
        """Put entries into given free slots, as `columns` and `parts` gave them."""
        self.version = next(_VERSIONS)
        for name, values in columns.items():
            self.columns[name][slots] = values
        if "codes" in parts:
            self._put_codes(slots, parts["codes"], parts["scale"])
        # A sorted list is a heap.
        taken = set(slots.tolist())
        self._free = sorted(set(self._free) - taken)
        if "state" in parts:
            self._put(slots, parts["state"])
        self.held += len(slots)
        for tier in columns["tier"].tolist():
            self.by_tier[tier] += 1

    def _put(self, slots: torch.Tensor, states: torch.Tensor) -> None:
        # Without codes the slot is the row.
        if self.reduces:
            rows = torch.tensor([heapq.heappop(self._free_rows) for _ in range(len(slots))])
        else:
            rows = slots
        states = states.to(self.device, self.dtype)
        at = rows.to(self.device)
        self._states[at] = states
        self._inverse_norm[at] = inverse_norm(states)
        self._row[slots] = rows

    def _put_codes(self, slots: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> None:
        at = slots.to(self.device)
        codes, scale = codes.to(self.device), scale.to(self.device)
        self._codes[at], self._scale[at] = codes, scale
        self._code_norm[at] = inverse_norm(codes.float() * scale[:, None])

    def renumber(self, slots: torch.Tensor, sequences: torch.Tensor) -> None:
        """Give entries to other sequences, `[k]` each."""
        self.version = next(_VERSIONS)
        self.columns["sequence"][slots] = sequences

    def sink(self, slots: torch.Tensor, tier: int) -> None:
        """Move entries down to a tier."""
        self.version = next(_VERSIONS)
        for source in self.columns["tier"][slots].tolist():
            self.by_tier[source] -= 1
        self.by_tier[tier] += len(slots)
        self.columns["tier"][slots] = tier
        # Only here do states lose precision: what sinks from the middle tier is kept in 8 bits.
        if tier == LONG_TERM and self.reduces and len(slots):
            rows = self._row[slots]
            self._put_codes(slots, *quantise_rows(self._states[rows.to(self.device)], torch.int8))
            self._drop_rows(slots)

    def drop(self, slots: torch.Tensor) -> None:
        """Zero entries and free their slots."""
        if not len(slots):
            return
        self.version = next(_VERSIONS)
        for tier in self.columns["tier"][slots].tolist():
            self.by_tier[tier] -= 1
        self.held -= len(slots)
        self._drop_rows(slots)
        if self.reduces:
            at = slots.to(self.device)
            for tensor in (self._codes, self._scale, self._code_norm):
                tensor.index_fill_(0, at, 0)
        for name, column in self.columns.items():
            column[slots] = _EMPTY.get(name, 0)
        for slot in slots.tolist():
            heapq.heappush(self._free, slot)

    def _drop_rows(self, slots: torch.Tensor) -> None:
        rows = self._row[slots]
        rows = rows[rows >= 0]
        at = rows.to(self.device)
        # Zeroed at once: forgotten text must not lie around until it is overwritten.
        self._states.index_fill_(0, at, 0)
        self._inverse_norm.index_fill_(0, at, 0)
        self._row[slots] = -1
        if self.reduces:
            for row in rows.tolist():
                heapq.heappush(self._free_rows, row)

    # -- reading ---------------------------------------------------------------------------------

    def states(self, slots: torch.Tensor) -> torch.Tensor:
        """Copies of the states, `[k, hidden]` in the layer's dtype; codes are turned back."""
        rows = self._row[slots]
        # Row 0 stands in for states in codes, which are put over it.
        out = self._states[rows.clamp(min=0).to(self.device)]
        coded = rows < 0
        if bool(coded.any()):
            codes, scale = self.codes(slots[coded])
            out[coded.to(self.device)] = (codes.float() * scale[:, None]).to(self.dtype)
        return out

    def codes(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the codes `[k, hidden]` and scales `[k]` of entries in the long-term tier."""
        at = slots.to(self.device)
        return self._codes[at], self._scale[at]

    def in_codes(self, slots: torch.Tensor) -> torch.Tensor:
        """Which entries are kept as codes, `[k]` bool."""
        return self._row[slots] < 0

    def search(
        self, query: torch.Tensor, slots: torch.Tensor, k: int, least: float | None
    ) -> torch.Tensor:
        """The k of the given slots with the highest cosine to `query` `[hidden]`, best first."""
        query = query.to(self.device)[None]
        # Whole states and codes lie in two tensors: each is searched, and the answers are merged.
        rows, coded = self._row[slots], self.in_codes(slots)
        full = rows[~coded]
        at_row = torch.full((len(self._states),), -1)
        at_row[full] = slots[~coded]
        found = [
            self._nearest(query, self._states, self._inverse_norm, full, k, least),
            self._nearest(query, self._codes, self._code_norm, slots[coded], k, least, self._scale),
        ]
        # Sorted by slot first, then stably by score: of equal cosines the lower slot comes first.
        scores = torch.cat([score for score, _ in found])
        where = torch.cat([at_row[found[0][1]], found[1][1]])
        order = where.argsort()
        return where[order[scores[order].argsort(descending=True, stable=True)][:k]]

    def _nearest(
        self,
        query: torch.Tensor,
        entries: torch.Tensor,
        inverse: torch.Tensor,
        rows: torch.Tensor,
        k: int,
        least: float | None,
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(rows):
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        visible = torch.zeros(1, len(entries), dtype=torch.bool, device=self.device)
        visible[0, rows.to(self.device)] = True
        k = min(k, len(rows))
        scores, found = cosine_topk(query, entries, inverse, visible, k, least, scale)
        scores, found = scores[0].cpu(), found[0].cpu()
        return scores[found >= 0], found[found >= 0]

    def touch(self, slots: torch.Tensor, clock: int) -> None:
        """Count a use of the entries."""
        self.columns["access_count"][slots] += 1
        self.columns["last_access"][slots] = clock
