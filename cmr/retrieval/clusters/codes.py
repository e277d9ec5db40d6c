"""What is kept of every stored token for a first look, and the lists that lead to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from cmr.retrieval.clusters.clusters import Clusters

SORT_AGAIN = 32
"""The lists are sorted again when more than this part of the slots changed since."""


class Look(NamedTuple):
    """Query tokens as the codes see them.

    `near` `[tokens, clusters]` are products with the centroids, `rest` `[tokens, directions]` is
    what codes are multiplied with; both are float32.
    """

    near: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, query: torch.Tensor, clusters: Clusters) -> Look:
        """That of query tokens `[tokens, hidden]` of norm 1."""
        return cls(query.float() @ clusters.centroids.t(), query.float() @ clusters.basis)


class Codes:
    """Cluster number and code of each token of each slot, and lists from clusters to tokens.

    A slot that changes is looked at as a whole, beside the lists, until they are sorted again.
    `known` `[slots]` says which slots have codes, `encoded` how many got some since the clusters
    were found.
    """

    def __init__(self, clusters: Clusters, slots: int, block: int) -> None:
        self.clusters, self.block = clusters, block
        device, width = clusters.centroids.device, clusters.basis.shape[1]
        # Less than `MAX_CLUSTERS`, which two bytes hold.
        self._numbers = torch.zeros(slots, block, dtype=torch.int16, device=device)
        # In the order of the lists, so that one list is read in one go: token t is in _rows[t], and
        # row r has token _tokens[r].
        self._codes = torch.zeros(slots * block, width, dtype=torch.int8, device=device)
        self._rows = torch.arange(slots * block, dtype=torch.int32, device=device)
        self._tokens = self._rows.clone()
        self.known = torch.zeros(slots, dtype=torch.bool, device=device)
        self._fresh = torch.zeros(slots, dtype=torch.bool, device=device)
        self._offsets = torch.zeros(len(clusters.centroids) + 1, dtype=torch.int64, device=device)
        self.encoded = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        own = (self._numbers, self._codes, self._rows, self._tokens, self._offsets)
        return self.clusters.nbytes + sum(part.nbytes for part in own)

    def grow(self, slots: int) -> None:
        """Make room for as many slots."""
        old = len(self.known)
        if slots <= old:
            return
        for name in ("_numbers", "known", "_fresh"):
            part = getattr(self, name)
            setattr(self, name, F.pad(part, (0, 0) * (part.ndim - 1) + (0, slots - old)))
        self._codes = F.pad(self._codes, (0, 0, 0, (slots - old) * self.block))
        more = torch.arange(old * self.block, slots * self.block).to(self._rows)
        self._rows = torch.cat([self._rows, more])
        self._tokens = torch.cat([self._tokens, more])

    def put(self, slots: torch.Tensor, vectors: torch.Tensor) -> None:
        """Encode slots `[n]` int64 anew by their vectors `[n, block, hidden]` of norm 1."""
        if not len(slots):
            return
        numbers, codes = self.clusters.encode(vectors.flatten(0, 1))
        slots = slots.to(numbers.device)
        self._numbers[slots] = numbers.view(len(slots), self.block)
        self._codes[self._rows_of(slots)] = codes
        self.known[slots] = self._fresh[slots] = True
        self.encoded += len(slots)

    def drop(self, held: torch.Tensor) -> None:
        """Zero the codes of all slots but those of `held`: nothing is kept of what is forgotten."""
        gone = (self.known & ~held.to(self.known.device)).nonzero()[:, 0]
        if len(gone):
            # Fresh, as the lists still lead to them: what they say is left out until then.
            self._codes[self._rows_of(gone)] = 0
            self._numbers[gone] = 0
            self.known[gone], self._fresh[gone] = False, True

    def settle(self) -> None:
        """Sort the lists again where too much changed since they were."""
        if SORT_AGAIN * int(self._fresh.sum()) <= len(self.known):
            return
        # Slots without codes go behind the last list, where no offset leads.
        lists = len(self._offsets) - 1
        numbers = torch.where(self.known[:, None], self._numbers, lists).flatten()
        order = numbers.argsort(stable=True)
        self._codes = self._codes[self._rows[order].long()]
        self._tokens = order.to(torch.int32)
        self._rows[order] = torch.arange(len(order), device=order.device).to(torch.int32)
        self._offsets[1:] = torch.bincount(numbers.long(), minlength=lists)[:lists].cumsum(0)
        self._fresh.zero_()

    def _rows_of(self, slots: torch.Tensor) -> torch.Tensor:
        """Rows `[n * block]` int64 of the tokens of slots."""
        return self._rows.view(-1, self.block)[slots].flatten().long()

    def look(self, query: Look, mine: torch.Tensor, probes: int) -> torch.Tensor:
        """Approximate maxima `[tokens, slots]` float32 of what each token's `probes` lists lead to.

        What is not among `mine` `[slots]`, or was not found, is `-inf`.
        """
        tokens, slots = len(query.near), len(self.known)
        found = query.near.new_full((tokens, slots), -torch.inf)
        entries, values, edges = self._listed(query, probes)
        # Token by token: the entries of one are one piece, and a scatter over all of them at once
        # would need a second index of the same length.
        for row in range(tokens):
            part = slice(edges[row], edges[row + 1])
            places = entries[part].div(self.block, rounding_mode="floor")
            found[row].scatter_reduce_(0, places, values[part], "amax")
        found.masked_fill_(~mine | self._fresh, -torch.inf)
        fresh = (mine & self._fresh).nonzero()[:, 0]
        if len(fresh):
            found[:, fresh] = self.maxima(query, fresh)
        return found

    def nearest(self, query: Look, mine: torch.Tensor, probes: int, count: int) -> torch.Tensor:
        """The slots of `mine` that a query of one token finds nearest, rising, each once.

        It looks into the nearest `probes` clusters and takes `count` tokens at most.
        """
        entries, values, _ = self._listed(query, probes)
        places = entries.div_(self.block, rounding_mode="floor")
        allowed = (mine & ~self._fresh)[places]
        places, values = places[allowed], values[allowed]
        fresh = (mine & self._fresh).nonzero()[:, 0]
        if len(fresh):
            places = torch.cat([places, fresh])
            values = torch.cat([values, self.maxima(query, fresh)[0]])
        return places[values.topk(min(count, len(values))).indices].unique()

    def _listed(self, query: Look, probes: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Tokens in the nearest clusters, their approximate products, and where each query ends."""
        # Codes of slots that changed are among them, which is why `look` and `nearest` leave these
        # out and compare the slots as a whole.
        tokens = len(query.near)
        probes = min(probes, query.near.shape[1])
        similar, lists = query.near.topk(probes, sorted=False)
        first = self._offsets[lists].flatten()
        counts = self._offsets[lists + 1].flatten() - first
        ends = counts.cumsum(0)
        total = int(ends[-1])
        at = torch.repeat_interleave(first - (ends - counts), counts, output_size=total)
        at += torch.arange(total, device=at.device)
        entries, codes = self._tokens[at].long(), self._codes[at]
        values = torch.repeat_interleave(similar.flatten(), counts, output_size=total)
        edges = [0, *ends.view(tokens, probes)[:, -1].tolist()]
        for row in range(tokens):
            part = slice(edges[row], edges[row + 1])
            values[part] += codes[part].float() @ query.rest[row]
        return entries, values, edges

    def maxima(self, query: Look, slots: torch.Tensor) -> torch.Tensor:
        """Approximate maxima `[tokens, n]` float32 of some slots, `[n]` int64."""
        # Some slots at a time: codes take four times their bytes as float32.
        numbers = self._numbers[slots].flatten().long()
        codes = self._codes[self._rows_of(slots)]
        near, rest = query.near.t().contiguous(), query.rest.t().contiguous()
        out = near.new_empty(len(slots), near.shape[1])
        step = 256 * self.block
        for start in range(0, len(numbers), step):
            part = slice(start, start + step)
            similar = torch.addmm(near[numbers[part]], codes[part].float(), rest)
            piece = similar.view(-1, self.block, near.shape[1]).amax(1)
            out[start // self.block :][: len(piece)] = piece
        return out.t()
