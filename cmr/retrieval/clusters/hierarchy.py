"""Passages out of very many blocks: clusters first, a closer look, and exactly in the end.

The search through all blocks reads every vector. Here the query's tokens first look into the
clusters nearest to them (FAISS; inverted lists as in PLAID, Santhanam et al. 2022), what was found
is looked at by its codes, and the best are compared exactly through the store's own vectors.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F

from cmr.kernels.reference._topk import topk_lowest_slot
from cmr.kernels.reference.select import Rule, shares_of
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval.ask import Searched
from cmr.retrieval.clusters.codes import Look
from cmr.retrieval.clusters.moments import SAMPLE, Moments, Sample, estimate
from cmr.retrieval.clusters.passages import (
    Candidates,
    Found,
    beside,
    joined,
    line_of,
    places,
    score,
    standardised,
)
from cmr.retrieval.clusters.upkeep import ClusterUpkeep, vectors_of

EXACT_BELOW = 16384
"""With fewer blocks of its own a row compares them all: that costs no more."""
PROBES, SECOND, THIRD = 16, 1024, 192
"""Clusters a query token, passages that are looked at by their codes, and that are compared."""
ALONE = 16
"""A query of one token looks into so many times more clusters: no other token makes up for it."""
LISTED = 4
"""A session with less than this part of the blocks is looked at block by block, not by lists."""
PEAKS = 3
"""Blocks that are compared for the sake of one query token."""
SAMPLES = 4
"""Sessions whose samples are kept."""


class MemoryHierarchy(ClusterUpkeep):
    """Clusters over a store's index vectors that follow the store by themselves.

    Of each token a cluster's number and a short code are kept, no vectors but those of a sample.
    What a row may find is decided by the ledger's owners at the moment of the search.

    Args:
        max_clusters: most clusters, 1 or more; None: the rule of `clusters_for` alone.
        drift: share of the blocks that may be new since the clusters were found; beyond it they
            are found again.
        seed: of the clusters and the samples.
        device: where FAISS works and the codes lie.
        exact_below: rows with fewer blocks compare them all.
        background: find clusters again in a thread, while searches go on with the old ones; False:
            `sync` waits for them.
        sample: blocks of a session whose maxima are exact, for mean and deviation.
        probes: clusters that each query token looks into.
        second: passages that are looked at by their codes.
        third: passages that are compared exactly.

    Raises:
        ImportError: FAISS is not installed; the message says how to get it.
        RuntimeError: a GPU is asked for and the installed FAISS knows none.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        max_clusters: int | None = None,
        *,
        drift: float = 0.3,
        seed: int = 0,
        device: torch.device | str = "cpu",
        exact_below: int = EXACT_BELOW,
        background: bool = True,
        sample: int = SAMPLE,
        probes: int = PROBES,
        second: int = SECOND,
        third: int = THIRD,
    ) -> None:
        numbers = {"exact_below": exact_below, "sample": sample, "probes": probes}
        numbers |= {"second": second, "third": third}
        if max_clusters is not None:
            numbers["max_clusters"] = max_clusters
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name}: 1 or more expected, got {number}")
        super().__init__(
            max_clusters=max_clusters,
            drift=drift,
            seed=seed,
            device=device,
            exact_below=exact_below,
            background=background,
        )
        self.sample, self.probes, self.second, self.third = sample, probes, second, third
        self._samples: OrderedDict[int, Sample] = OrderedDict()
        self._order = torch.empty(0)
        self._owned: OrderedDict[int, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._owned_at = -1

    @property
    def nbytes(self) -> int:
        """Bytes of clusters, codes, lists and samples."""
        samples = sum(sample.nbytes for sample in self._samples.values())
        return samples + (self._codes.nbytes if self._codes else 0)

    def sync(self, store: Searched) -> None:
        """Take over what changed in the store since the last time; called by every search.

        Raises what went wrong while clusters were found in the background.
        """
        changed = self._seen != store.ledger.changes
        super().sync(store)
        for sample in self._samples.values() if changed else ():
            sample.drop(store.ledger.number)

    def candidates(
        self,
        store: Searched,
        query: torch.Tensor,
        query_mask: torch.Tensor | None,
        sessions: torch.Tensor,
        rule: Rule,
        visible: torch.Tensor | None = None,
    ) -> Candidates:
        """Blocks that may belong to the best passages, of each row's own session only.

        Args:
            store: the store.
            query: `[batch, tokens, hidden]`, norm 1 each, in the index's dtype.
            query_mask: `[batch, tokens]` bool, False for padding; None for none.
            sessions: `[batch]` int64; a number that owns nothing finds nothing.
            rule: of the scores; `passage`, `clamp` and `peak_power` count here.
            visible: `[batch, slots]` bool, what each row may see of its own; None: everything.

        Raises:
            ValueError: the shapes do not fit the store's.
        """
        _check(store, query, query_mask, sessions)
        self.sync(store)
        found, counts = [], []
        for row, session in enumerate(sessions.tolist()):
            mine, slots = self._own(store, session)
            if visible is not None:
                seen = visible[row].to(mine.device)
                mine = mine & F.pad(seen, (0, len(mine) - len(seen)))
                slots = mine.nonzero()[:, 0]
            asks = None if query_mask is None else query_mask[row]
            counts.append(len(slots))
            own = sessions[row : row + 1]
            if self._codes is None or len(slots) < self.exact_below:
                maxima = store.maxima(query[row : row + 1], own, 0, store.high_water)[0]
                maxima = maxima[:, slots.to(maxima.device)]
                moments = _moments(maxima)
            else:
                slots, moments = self._some(store, query[row], asks, mine, slots, session, rule)
                at = slots.to(query.device)[None]
                maxima = store.maxima_at(query[row : row + 1], own, at)[0]
            found.append((slots, maxima, moments))
        width = max((len(slots) for slots, _, _ in found), default=0)
        table = torch.full((len(found), width), -1, device=query.device)
        exact = torch.full((*query.shape[:2], width), -torch.inf, device=query.device)
        for row, (slots, maxima, _) in enumerate(found):
            table[row, : len(slots)] = slots.to(table.device)
            exact[row, :, : len(slots)] = maxima
        every = [moments for _, _, moments in found]
        return Candidates(
            table,
            exact,
            _stacked([moments.mean for moments in every], query),
            _stacked([moments.deviation for moments in every], query),
            _stacked([moments.peak for moments in every], query),
            torch.tensor(counts, dtype=torch.int64, device=query.device),
        )

    def search(
        self,
        store: Searched,
        query: torch.Tensor,
        query_mask: torch.Tensor | None,
        sessions: torch.Tensor,
        rule: Rule,
        k: int,
        visible: torch.Tensor | None = None,
    ) -> Found:
        """The best passages by their similarity alone, as `maxsim_select` scores them.

        Args:
            store: the store.
            query: `[batch, tokens, hidden]`, any float dtype and length.
            query_mask: `[batch, tokens]` bool, False for padding; None for none.
            sessions: `[batch]` int64.
            rule: of the scores.
            k: passages at most.
            visible: `[batch, slots]` bool; None: everything.
        """
        query = F.normalize(query.float(), dim=-1).to(store.index.dtype)
        near = self.candidates(store, query, query_mask, sessions, rule, visible)
        after = places(store.successor, near.slots)
        line = score(near, query_mask, after, rule)
        before = places(store.predecessor, near.slots)
        peaks = (line >= beside(line, after)) & (line > beside(line, before)) & (near.slots >= 0)
        best, at = topk_lowest_slot(line.masked_fill(~peaks, -torch.inf), k)
        slots = near.slots.gather(1, at.clamp(min=0)) if near.slots.shape[1] else at
        return Found(torch.where(at >= 0, slots, -1), best)

    def _some(
        self,
        store: Searched,
        query: torch.Tensor,
        asks: torch.Tensor | None,
        mine: torch.Tensor,
        slots: torch.Tensor,
        session: int,
        rule: Rule,
    ) -> tuple[torch.Tensor, Moments]:
        """The most promising blocks of a row, and estimates of the moments."""
        codes = self._codes
        assert codes is not None
        look = Look(codes.clusters, query.to(self.device))
        sample = self._sampled(store, slots, session)
        exact = sample.maxima(query).to(self.device)
        mine = mine.to(self.device)
        if len(query) == 1 and rule.passage == 1:  # nothing to weigh: the nearest are the best
            best = codes.nearest(look, mine, ALONE * self.probes, self.second)
            return best.cpu(), _moments(exact)
        if LISTED * len(slots) < int(codes.known.sum()):
            found = look.near.new_full((len(query), len(mine)), -torch.inf)
            found[:, slots.to(self.device)] = codes.maxima(look, slots.to(self.device))
        else:
            found = codes.look(look, mine, self.probes)
        moments = estimate(exact, sample.slots.to(self.device), found, len(slots))
        best = self._promising(store, look, found, mine, moments, asks, rule)
        return best.cpu(), moments

    def _promising(
        self,
        store: Searched,
        look: Look,
        found: torch.Tensor,
        mine: torch.Tensor,
        moments: Moments,
        asks: torch.Tensor | None,
        rule: Rule,
    ) -> torch.Tensor:
        """Slots `[n]`, rising, of the passages that approximate scores put first."""
        codes = self._codes
        assert codes is not None
        after = before = mine  # unused but for passages of two
        if rule.passage == 2:
            after, before = (
                F.pad(links, (0, len(mine) - len(links)), value=-1).to(self.device)
                for links in (store.successor, store.predecessor)
            )
        measure = moments.mean, moments.deviation, rule.clamp
        counts = mine.sum()[None]

        def shares_among(top: torch.Tensor) -> torch.Tensor:
            asking = None if asks is None else asks[None].to(top.device)
            return shares_of(top[None], counts, asking, rule.peak_power)[0][0]

        known = standardised(moments.peak[:, None], *measure)[:, 0]
        rough = torch.where(
            found > -torch.inf,
            found * moments.slope + moments.shift[:, None],
            moments.rest[:, None],
        ).masked_fill_(~mine, -torch.inf)
        z = standardised(rough, *measure)
        shares = shares_among(torch.maximum(z.amax(-1), known))
        line = line_of(z, shares, after, rule).masked_fill_(~mine, -torch.inf)
        starts = line.topk(min(self.second, int(counts))).indices
        near = joined(starts, after) if rule.passage == 2 else starts.sort().values
        closer = codes.maxima(look, near) * moments.slope + moments.shift[:, None]
        z[:, near] = standardised(closer, *measure)
        shares = shares_among(torch.maximum(z[:, near].amax(-1), known))
        line = line_of(z, shares, after, rule)[starts]
        chosen = starts[line.topk(min(self.third, len(starts))).indices]
        if rule.passage == 2:
            # What stands beside the best ones: whether they are local maxima is decided exactly.
            best = chosen[: -(-self.third // 4)]
            chosen = torch.cat([joined(chosen, after), joined(joined(best, before, after), after)])
        # A query token's weight is its best match anywhere, be it in no passage worth reading.
        best = rough.topk(min(PEAKS, rough.shape[1])).indices.flatten()
        chosen = torch.cat([chosen, best]).unique()
        return chosen[mine[chosen]]

    def _own(self, store: Searched, session: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A session's slots, as a bool for each of all and as numbers; none for `NO_SESSION`."""
        if self._owned_at != store.ledger.changes:
            self._owned.clear()
            self._owned_at = store.ledger.changes
        if session not in self._owned:
            mine = store.ledger.owner == session
            if session == NO_SESSION:
                mine = torch.zeros_like(mine)
            self._owned[session] = mine, mine.nonzero()[:, 0]
            while len(self._owned) > SAMPLES:
                self._owned.popitem(last=False)
        return self._owned[session]

    def _sampled(self, store: Searched, slots: torch.Tensor, session: int) -> Sample:
        """The session's sample, up to date: its blocks that come first in one shuffled order."""
        owner, number = store.ledger.owner, store.ledger.number
        if len(self._order) != len(owner):
            generator = torch.Generator().manual_seed(self.seed)
            self._order = torch.randperm(len(owner), generator=generator)
        sample = self._samples.pop(session, None) or Sample(store.block_size, store.index)
        if sample.of is not slots:  # the same tensor while nothing changes
            first = self._order[slots].topk(min(self.sample, len(slots)), largest=False).indices
            wanted = slots[first]
            sample.update(wanted, number[wanted], lambda new: vectors_of(store, new))
            sample.of = slots
        self._samples[session] = sample
        while len(self._samples) > SAMPLES:
            self._samples.popitem(last=False)
        return sample


def _moments(maxima: torch.Tensor) -> Moments:
    """The true moments of maxima `[tokens, n]`."""
    if not maxima.shape[1]:
        none = maxima.new_zeros(len(maxima))
        return Moments(none, none, none - torch.inf, none, 1.0, none)
    deviation, mean = torch.std_mean(maxima, -1, correction=0)
    return Moments(mean, deviation, maxima.amax(-1), mean, 1.0, mean * 0)


def _stacked(rows: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Rows `[tokens]` as `[batch, tokens]` float32 beside the query."""
    return torch.stack(rows).to(like.device) if rows else like.new_empty(0, like.shape[1]).float()


def _check(
    store: Searched, query: torch.Tensor, query_mask: torch.Tensor | None, sessions: torch.Tensor
) -> None:
    hidden = store.index.shape[-1]
    if query.ndim != 3 or query.shape[-1] != hidden:
        raise ValueError(
            f"query: [batch, tokens, hidden={hidden}] expected, got {list(query.shape)}"
        )
    if query_mask is not None and query_mask.shape != query.shape[:2]:
        raise ValueError(
            f"query_mask: {list(query.shape[:2])} expected, got {list(query_mask.shape)}"
        )
    if sessions.shape != query.shape[:1]:
        raise ValueError(f"sessions: [{len(query)}] expected, got {list(sessions.shape)}")
