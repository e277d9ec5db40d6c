"""The cluster search as a strategy: exact scores of the passages that the clusters point to."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import Rule, certainty_of
from cmr.retrieval.ask import Ask, Scored, Searched, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.clusters.hierarchy import MemoryHierarchy
from cmr.retrieval.clusters.passages import Candidates, measured, places, score
from cmr.retrieval.rules import rule_for


class Hierarchical:
    """Passages that `MemoryHierarchy` points to, with the scores of the semantic search.

    Each store that is searched gets a hierarchy of its own, which follows it and goes with it.

    Args:
        max_clusters: see `MemoryHierarchy`.
        calibration: of the model, for what is expected when nothing fits; None: see `TUNED`.
        **settings: further arguments of `MemoryHierarchy`.

    Raises:
        ImportError: FAISS is not installed; the message says how to get it.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        max_clusters: int | None = None,
        calibration: Calibration | None = None,
        **settings: Any,
    ) -> None:
        self._make = lambda: MemoryHierarchy(max_clusters, **settings)
        self._make()  # what cannot be made is refused here, not at the first search
        self._calibration = calibration
        self._of: WeakKeyDictionary[Any, MemoryHierarchy] = WeakKeyDictionary()

    def hierarchy(self, store: Searched) -> MemoryHierarchy:
        """The hierarchy over a store; a new one at its first search."""
        # By its ledger: a layer of a buffer is seen through a new object at every search.
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
        near = self.hierarchy(store).candidates(store, query, ask.mask, ask.sessions, rule, seen)
        after = places(store.successor, near.slots)
        line = score(near, ask.mask, after, rule)
        # What is no candidate goes into a last column that is left out.
        at = torch.where(near.slots >= 0, near.slots, seen.shape[1])
        passages = none.scatter(1, at, line)[:, :-1].masked_fill(~seen, NEG_INF)
        return Scored(
            passages,
            certainty_of(passages, seen.sum(-1), rule),
            explained=lambda starts: _explained(starts, near, ask.mask, after, rule),
        )

    def follow(self, store: Searched) -> None:
        """Drop what the store holds no more, if there is a hierarchy over it."""
        if store.ledger in self._of:
            self._of[store.ledger].sync(store)

    def close(self) -> None:
        """End the threads that may be finding clusters."""
        for hierarchy in self._of.values():
            hierarchy.close()


def _explained(
    starts: torch.Tensor,
    near: Candidates,
    query_mask: torch.Tensor | None,
    after: torch.Tensor,
    rule: Rule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `selection.values_of` says of passages that begin at candidates.

    Args:
        starts: `[batch, k]` int64, -1 for none.
        near: the candidates.
        query_mask: `[batch, tokens]` bool; None: all ask.
        after: `[batch, candidates]` int64, where among them each one's successor is, or -1.
        rule: of the scores.
    """
    rising = torch.where(near.slots >= 0, near.slots, torch.iinfo(torch.int64).max)
    at = torch.searchsorted(rising, starts.clamp(min=0)).clamp(max=max(0, near.slots.shape[1] - 1))
    z, shares = measured(near, query_mask, rule)
    if not z.shape[-1]:
        return z.new_zeros(*z.shape[:2], starts.shape[1]), shares
    values = z.gather(2, at[:, None].expand(-1, z.shape[1], -1))
    if rule.passage == 2:
        following = after.gather(1, at)[:, None].expand(-1, z.shape[1], -1)
        beside = z.gather(2, following.clamp(min=0)).masked_fill(following < 0, -rule.clamp)
        values = torch.maximum(values, beside)
    return values, shares
