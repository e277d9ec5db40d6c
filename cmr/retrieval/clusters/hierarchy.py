"""Passages out of very many blocks: clusters first, a closer look, and exactly in the end.

The search through all blocks reads every vector. Here the query's tokens first look into the
clusters nearest to them (FAISS; inverted lists as in PLAID, Santhanam et al. 2022), what was found
is looked at by its codes, and the best are compared exactly through the store's own vectors.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F

from cmr.kernels.arguments import expect
from cmr.kernels.reference.select import Rule, shares_of, topk_lowest_slot
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval.ask import Searched
from cmr.retrieval.clusters.codes import Look
from cmr.retrieval.clusters.moments import SAMPLE, Moments, Sample, estimate
from cmr.retrieval.clusters.shortlist import Shortlist, joined, line_of, places, standardised
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
SESSIONS = 4
"""Sessions of which samples and slots are kept."""


class Found(NamedTuple):
    """The best passages: `starts` `[batch, k]` int64, their first slots, -1 for none; `scores`."""

    starts: torch.Tensor
    scores: torch.Tensor


class Row(NamedTuple):
    """One row of a search: its tokens, which of them ask (None: all), and what it may see.

    `mine` `[all slots]` is a bool for each slot; `slots` `[n]` are the same as numbers.
    """

    query: torch.Tensor
    asks: torch.Tensor | None
    session: int
    mine: torch.Tensor
    slots: torch.Tensor


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

    Attributes:
        rebuilds: how often clusters were found.

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
        numbers = {"max_clusters": max_clusters, "exact_below": exact_below, "sample": sample}
        numbers |= {"probes": probes, "second": second, "third": third}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ValueError(f"{name}: 1 or more expected, got {number}")
        super().__init__(max_clusters, drift, seed, torch.device(device), exact_below, background)
        self.sample, self.probes, self.second, self.third = sample, probes, second, third
        self._samples: OrderedDict[int, Sample] = OrderedDict()
        self._order = torch.empty(0)
        self._owned: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._owned_at = -1

    @property
    def nbytes(self) -> int:
        """Bytes of clusters, codes, lists and samples."""
        samples = sum(sample.nbytes for sample in self._samples.values())
        return samples + (self._codes.nbytes if self._codes else 0)

    def sync(self, store: Searched) -> None:
        """Take over what changed in the store since the last time; called by every search.

        What went wrong while clusters were found in the background is raised here.
        """
        changed = self._seen != store.ledger.changes
        super().sync(store)
        for sample in self._samples.values() if changed else ():
            sample.drop(store.ledger.number)

    def shortlist(
        self,
        store: Searched,
        query: torch.Tensor,
        query_mask: torch.Tensor | None,
        sessions: torch.Tensor,
        rule: Rule,
        visible: torch.Tensor | None = None,
    ) -> Shortlist:
        """Blocks that may belong to the best passages, of each row's own session only.

        The query `[batch, tokens, hidden]` is of norm 1 in the index's dtype; its mask is False for
        padding. Of its own a row sees what is `visible` `[batch, slots]`, or everything.
        """
        expect(
            ("query", query, "batch tokens hidden", None),
            ("query_mask", query_mask, "batch tokens", None),
            ("sessions", sessions, "batch", None),
            hidden=store.index.shape[-1],
        )
        batch, tokens, _ = query.shape
        self.sync(store)
        found = []
        for number, session in enumerate(sessions.tolist()):
            asks = None if query_mask is None else query_mask[number]
            seen = None if visible is None else visible[number]
            row = Row(query[number], asks, session, *self._own(store, session, seen))
            found.append(self._compared(store, row, sessions[number : number + 1], rule))
        width = max((len(slots) for slots, _, _ in found), default=0)
        table = torch.full((batch, width), -1, device=query.device)
        exact = torch.full((batch, tokens, width), -torch.inf, device=query.device)
        mean, deviation, peaks = torch.zeros(3, batch, tokens, device=query.device)
        for number, (slots, maxima, moments) in enumerate(found):
            table[number, : len(slots)] = slots
            exact[number, :, : len(slots)] = maxima
            mean[number], deviation[number] = moments.mean, moments.deviation
            peaks[number] = moments.peak
        after = places(store.successor, table)
        return Shortlist(table, exact, mean, deviation, peaks, after, query_mask, rule)

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
        """The `k` best passages by their similarity alone, as `maxsim_select` scores them.

        The arguments are those of `shortlist`, with a query of any float dtype and length.
        """
        query = F.normalize(query.float(), dim=-1).to(store.index.dtype)
        near = self.shortlist(store, query, query_mask, sessions, rule, visible)
        line, peaks = near.line(), near.slots >= 0
        if not line.shape[1]:
            best, starts = topk_lowest_slot(line, k)
            return Found(starts, best)
        before = places(store.predecessor, near.slots)
        beside = [
            line.gather(1, at.clamp(min=0)).masked_fill(at < 0, -torch.inf)
            for at in (near.after, before)
        ]
        peaks &= (line >= beside[0]) & (line > beside[1])
        best, at = topk_lowest_slot(line.masked_fill(~peaks, -torch.inf), k)
        starts = near.slots.gather(1, at.clamp(min=0)).masked_fill(at < 0, -1)
        return Found(starts, best)

    def _compared(
        self, store: Searched, row: Row, session: torch.Tensor, rule: Rule
    ) -> tuple[torch.Tensor, torch.Tensor, Moments]:
        """The blocks of a row that are worth it, their exact maxima, and the row's moments."""
        query, slots = row.query[None], row.slots
        if self._codes is None or len(slots) < self.exact_below:
            maxima = store.maxima(query, session, 0, store.high_water)[0]
            maxima = maxima[:, slots.to(maxima.device)]
            return slots, maxima, Moments.of(maxima)
        slots, moments = self._worth(store, row, rule)
        at = slots.to(query.device)[None]
        return slots, store.maxima_at(query, session, at)[0], moments

    def _worth(self, store: Searched, row: Row, rule: Rule) -> tuple[torch.Tensor, Moments]:
        """The most promising blocks of a row with many, and estimates of its moments."""
        codes = self._codes
        assert codes is not None
        look = Look.of(row.query.to(self.device), codes.clusters)
        sample = self._sampled(store, row)
        exact = sample.maxima(row.query).to(self.device)
        mine, slots = row.mine.to(self.device), row.slots.to(self.device)
        if len(row.query) == 1 and rule.passage == 1:
            # There is nothing to weigh: the nearest are the best.
            best = codes.nearest(look, mine, ALONE * self.probes, self.second)
            return best.cpu(), Moments.of(exact)
        if LISTED * len(slots) < int(codes.known.sum()):
            # Lists would lead to other sessions' tokens for the most part.
            found = look.near.new_full((len(row.query), len(mine)), -torch.inf)
            found[:, slots] = codes.maxima(look, slots)
        else:
            found = codes.look(look, mine, self.probes)
        moments = estimate(exact, sample.slots.to(self.device), found, len(slots))
        best = self._promising(store, row._replace(mine=mine), look, found, moments, rule)
        return best.cpu(), moments

    def _promising(
        self,
        store: Searched,
        row: Row,
        look: Look,
        found: torch.Tensor,
        moments: Moments,
        rule: Rule,
    ) -> torch.Tensor:
        """Slots `[n]`, rising, of the passages that approximate scores put first.

        First all slots are scored by what the lists led to, `found`; then the best `second` of them
        once more by all their codes, which leaves `third`.
        """
        codes, mine = self._codes, row.mine
        assert codes is not None
        after = before = None
        if rule.passage == 2:
            after, before = (
                F.pad(links, (0, len(mine) - len(links)), value=-1).to(self.device)
                for links in (store.successor, store.predecessor)
            )
        count = int(mine.sum())
        asks = None if row.asks is None else row.asks[None].to(self.device)

        def standard(maxima: torch.Tensor) -> torch.Tensor:
            return standardised(maxima, moments.mean, moments.deviation, rule.clamp)

        def shares_among(z: torch.Tensor) -> torch.Tensor:
            top = torch.maximum(z.amax(-1), standard(moments.peak[:, None])[:, 0])
            return shares_of(top[None], asks, rule.peak_power)[0][0]

        # What the lists did not lead to counts as the mean of the sample's blocks that they missed.
        rough = torch.where(
            found > -torch.inf,
            found * moments.slope + moments.shift[:, None],
            moments.rest[:, None],
        ).masked_fill_(~mine, -torch.inf)
        z = standard(rough)
        line = line_of(z, shares_among(z), after).masked_fill_(~mine, -torch.inf)
        starts = line.topk(min(self.second, count)).indices
        near = joined(starts, after)
        z[:, near] = standard(codes.maxima(look, near) * moments.slope + moments.shift[:, None])
        line = line_of(z, shares_among(z[:, near]), after)[starts]
        chosen = starts[line.topk(min(self.third, len(starts))).indices]
        if rule.passage == 2:
            # What stands beside the best ones: whether they are local maxima is decided exactly.
            best = chosen[: -(-self.third // 4)]
            chosen = torch.cat([joined(chosen, after), joined(joined(best, before, after), after)])
        # A query token's weight is its best match anywhere, be it in no passage worth reading.
        best = rough.topk(min(PEAKS, rough.shape[1])).indices.flatten()
        chosen = torch.cat([chosen, best]).unique()
        return chosen[mine[chosen]]

    def _own(
        self, store: Searched, session: int, visible: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A session's visible slots, as a bool for each of all and as numbers."""
        if self._owned_at != store.ledger.changes or len(self._owned) > SESSIONS:
            self._owned, self._owned_at = {}, store.ledger.changes
        if session not in self._owned:
            # Empty slots are owned by NO_SESSION, which must find nothing.
            mine = (store.ledger.owner == session) & (session != NO_SESSION)
            self._owned[session] = mine, mine.nonzero()[:, 0]
        mine, slots = self._owned[session]
        if visible is None:
            return mine, slots
        mine = mine & F.pad(visible.to(mine.device), (0, len(mine) - len(visible)))
        return mine, mine.nonzero()[:, 0]

    def _sampled(self, store: Searched, row: Row) -> Sample:
        """The session's sample, up to date: its blocks that come first in one shuffled order."""
        owner, number = store.ledger.owner, store.ledger.number
        if len(self._order) != len(owner):
            generator = torch.Generator().manual_seed(self.seed)
            self._order = torch.randperm(len(owner), generator=generator)
        sample = self._samples.pop(row.session, None) or Sample(store.block_size, store.index)
        if sample.of is not row.slots:  # the same tensor while nothing changes
            order = self._order[row.slots]
            first = order.topk(min(self.sample, len(order)), largest=False).indices
            wanted = row.slots[first]
            sample.update(wanted, number[wanted], lambda new: vectors_of(store, new))
            sample.of = row.slots
        self._samples[row.session] = sample
        if len(self._samples) > SESSIONS:
            self._samples.popitem(last=False)
        return sample
