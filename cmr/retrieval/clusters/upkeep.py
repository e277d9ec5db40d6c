"""Clusters and codes that follow a store: what changed is taken over, worn clusters found again."""

from __future__ import annotations

import threading

import torch

from cmr.memory.sessions import NO_SESSION
from cmr.retrieval.ask import Searched
from cmr.retrieval.clusters.clusters import POINTS, clusters_for, load_faiss, train
from cmr.retrieval.clusters.codes import Codes

_ENCODED_AT_ONCE = 1024


class ClusterUpkeep:
    """The codes of what a store holds, kept up to date by the store's own account."""

    def __init__(
        self,
        max_clusters: int | None,
        drift: float,
        seed: int,
        device: torch.device,
        exact_below: int,
        background: bool,
    ) -> None:
        if not drift > 0:
            raise ValueError(f"drift: a number above 0 expected, got {drift}")
        load_faiss(device)  # refused here where it is missing, not in the middle of a search
        self.max_clusters, self.drift, self.seed = max_clusters, drift, seed
        self.device, self.exact_below, self.background = device, exact_below, background
        self.rebuilds = 0
        self._codes: Codes | None = None
        self._seen = self._trained = 0
        self._thread: threading.Thread | None = None
        self._made: tuple[Codes, int] | BaseException | None = None
        self._stop = threading.Event()

    @property
    def clusters(self) -> int:
        """Clusters in use; 0 before they were first found."""
        return len(self._codes.clusters.centroids) if self._codes else 0

    def sync(self, store: Searched) -> None:
        """Take over what changed in the store since the last time."""
        self._take_over()
        if self._codes is not None:
            if self._seen != store.ledger.changes:
                self._encode(self._codes, store, self._seen)
                self._codes.drop(store.ledger.owner != NO_SESSION)
                self._seen = store.ledger.changes
            self._codes.settle()
        if self._thread is None and self._worn(store):
            self.rebuild(store, wait=not self.background)

    def rebuild(self, store: Searched, wait: bool = True) -> None:
        """Find the clusters again over all that the store holds.

        They are in use on return, or without `wait` as soon as a search finds them done.
        """
        self._join()
        self._take_over()
        seen = store.ledger.changes
        held = (store.ledger.owner != NO_SESSION).nonzero()[:, 0]
        if not len(held):
            return
        if not wait:
            # A daemon: a process that ends must not wait for clusters that nobody will use.
            self._thread = threading.Thread(
                target=self._run, args=(store, held, seen), name="cmr-clusters", daemon=True
            )
            self._thread.start()
            return
        self._made = self._build(store, held), seen
        self._take_over()
        self.sync(store)

    def close(self) -> None:
        """End the thread that may be finding clusters."""
        self._stop.set()
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self, store: Searched, held: torch.Tensor, seen: int) -> None:
        try:
            self._made = self._build(store, held), seen
        except BaseException as error:  # raised again by the next search
            self._made = error

    def _take_over(self) -> None:
        """Use what the thread made, if it is done."""
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._thread = None
        made, self._made = self._made, None
        if isinstance(made, BaseException):
            raise made
        if made is not None:
            # What was written or forgotten meanwhile is not in it: `_seen` is where it began, so
            # that `sync` takes over all that changed since.
            self._codes, self._seen = made
            self.rebuilds += 1

    def _build(self, store: Searched, held: torch.Tensor) -> Codes:
        """Clusters of a part of what is held, and codes of all of it."""
        block = store.block_size
        clusters = clusters_for(len(held) * block, self.max_clusters)
        generator = torch.Generator().manual_seed(self.seed)
        part = held[torch.randperm(len(held), generator=generator)]
        part = part[: max(1, -(-clusters * POINTS // block))].sort().values
        vectors = vectors_of(store, part).flatten(0, 1)
        found = train(vectors, min(clusters, len(vectors)), self.seed, self.device)
        codes = Codes(found, len(store.ledger.owner), block)
        for slots in held.split(_ENCODED_AT_ONCE):
            if self._stop.is_set():
                break
            codes.put(slots, vectors_of(store, slots).to(self.device))
        # From here on counts what the clusters were not found over.
        codes.encoded, self._trained = 0, len(held)
        codes.settle()
        return codes

    def _encode(self, codes: Codes, store: Searched, since: int) -> None:
        codes.grow(len(store.ledger.owner))
        for first, last in store.ledger.changed_since(since):
            slots = torch.arange(first, last)
            slots = slots[store.ledger.owner[first:last] != NO_SESSION]
            for part in slots.split(_ENCODED_AT_ONCE):
                codes.put(part, vectors_of(store, part).to(self.device))

    def _worn(self, store: Searched) -> bool:
        """Whether clusters are missing, or describe too little of what is stored by now."""
        if self._stop.is_set():
            return False
        if self._codes is None:
            return int((store.ledger.owner != NO_SESSION).sum()) >= self.exact_below
        return self._codes.encoded > self.drift * self._trained


def vectors_of(store: Searched, slots: torch.Tensor) -> torch.Tensor:
    """Vectors `[n, block, hidden]` of slots; what is no token repeats one of its block."""
    vectors = store.states(slots)
    held = store.positions[slots.to(store.positions.device)].to(vectors.device) >= 0
    if bool(held.all()):
        return vectors
    # A repeated vector changes no block's maximum; padding as it lies there might.
    first = held.to(torch.int8).argmax(-1)
    stand_in = vectors[torch.arange(len(vectors), device=vectors.device), first]
    return torch.where(held[..., None], vectors, stand_in[:, None])
