"""The cluster search as a strategy: exact scores of the passages that the clusters point to."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import certainty_of
from cmr.retrieval.ask import Ask, Scored, Searched, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.clusters.hierarchy import MemoryHierarchy
from cmr.retrieval.selection import rule_for


class Hierarchical:
    """Passages that `MemoryHierarchy` points to, with the scores of the semantic search.

    Each store that is searched gets a hierarchy of its own, which follows it and goes with it. All
    arguments but the calibration are those of a hierarchy, and so are the errors.
    """

    def __init__(
        self,
        max_clusters: int | None = None,
        calibration: Calibration | None = None,
        **settings: Any,
    ) -> None:
        self._make = partial(MemoryHierarchy, max_clusters, **settings)
        self._make()  # what cannot be made is refused here, not at the first search
        self._calibration = calibration
        self._of: WeakKeyDictionary[Any, MemoryHierarchy] = WeakKeyDictionary()

    def hierarchy(self, store: Searched) -> MemoryHierarchy:
        """The hierarchy over a store; a new one at its first search."""
        # Known by the ledger: a layer of a buffer is seen through a new object at every search.
        found = self._of.get(store.ledger)
        if found is None:
            found = self._of[store.ledger] = self._make()
        return found

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in standard deviations from what is usual; see `Strategy`."""
        seen, rule = visible(ask, store), rule_for(ask.located, self._calibration)
        none = torch.full((len(seen), seen.shape[1] + 1), NEG_INF, device=seen.device)
        if not seen.shape[1]:
            return Scored(none[:, :0], certainty_of(none[:, :0], seen.sum(-1), rule))
        query = F.normalize(ask.states.float(), dim=-1).to(store.index.dtype)
        near = self.hierarchy(store).shortlist(store, query, ask.mask, ask.sessions, rule, seen)
        # What is none goes into a last column that is left out.
        at = torch.where(near.slots >= 0, near.slots, seen.shape[1])
        passages = none.scatter(1, at, near.line())[:, :-1].masked_fill(~seen, NEG_INF)
        certainty = certainty_of(passages, seen.sum(-1), rule)
        return Scored(passages, certainty, explained=near.explained)

    def follow(self, store: Searched) -> None:
        """Drop what the store holds no more, if there is a hierarchy over it."""
        if store.ledger in self._of:
            self._of[store.ledger].sync(store)

    def close(self) -> None:
        """End the threads that may be finding clusters."""
        for hierarchy in self._of.values():
            hierarchy.close()
