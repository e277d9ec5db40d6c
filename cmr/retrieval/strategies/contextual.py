"""Relevance by several heads, each of which compares in its own way: no weights are trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cmr.config import checks as check
from cmr.errors import ModelMismatchError
from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import certainty_of, similarity_line
from cmr.kernels.standardise import standardise
from cmr.retrieval.ask import Ask, Scored, Searched, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.selection import rule_for
from cmr.retrieval.strategies.semantic import Semantic

HEADS = 8
SLICES_WEIGHT, HEAD_WEIGHT = 0.1, 0.05
"""Of the slices together, and of each of the model's heads, beside 1 for the semantic line."""
BLOCKS_AT_ONCE = 1024
"""Blocks whose vectors are compared at once, and of which the centre is taken."""


class ContextualRelevanceScorer:
    """Late interaction by several heads, each an equal slice of the states.

    Slices are centred on the row's own stored tokens and compared by cosine; each query token's
    block maxima are standardised over the row's blocks, head by head, and averaged over the heads,
    so that no few large features rule. Then passages are scored as the semantic search does.
    Every vector of the row is read: it costs about as much as that search without its kernel.

    Args:
        hidden_size: width of the vectors, 1 or more.
        heads: slices, 1 to `hidden_size`; their widths differ by 1 at most.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, hidden_size: int, heads: int = HEADS) -> None:
        self.hidden_size = check.integer("hidden_size", hidden_size, 1)
        self.heads = check.integer("heads", heads, 1, self.hidden_size)

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in standard deviations from what is usual; see `Strategy`."""
        if ask.states.shape[-1] != self.hidden_size:
            raise ModelMismatchError(
                f"states: width {self.hidden_size} expected, got {ask.states.shape[-1]}"
            )
        seen = visible(ask, store)
        line = slices_line(ask, store, seen, self.heads)
        return Scored(line, certainty_of(line, seen.sum(-1), rule_for(ask.located)))


@dataclass(frozen=True)
class Contextual:
    """The semantic search and several heads beside it.

    The heads are the model's own where a calibration names some, `Ask.heads` has their queries and
    their layers' keys are stored; elsewhere they are `slices`, see `ContextualRelevanceScorer`. A
    passage whose keys are not stored (only the first tier keeps them where they are compared) gets
    of a head what the semantic line says of it.
    """

    calibration: Calibration | None = None
    slices: int = HEADS

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in standard deviations from what is usual; see `Strategy`."""
        semantic = Semantic(self.calibration).score(ask, store)
        seen = visible(ask, store)
        rule, successor = rule_for(ask.located), store.successor[: seen.shape[1]]
        line = semantic.passages
        for known, maxima in self._heads(ask, store):
            found = similarity_line(maxima, ask.mask, successor, seen & known, rule)[0]
            # A head says nothing of a block without keys, which must be found all the same.
            found = torch.where(known & (found > NEG_INF), found, semantic.passages)
            line = line + HEAD_WEIGHT * found
        if line is semantic.passages:  # there was no head
            slices = min(self.slices, ask.states.shape[-1])
            line = line + SLICES_WEIGHT * slices_line(ask, store, seen, slices)
        return Scored(line.masked_fill(~seen, NEG_INF), semantic.certainty)

    def _heads(self, ask: Ask, store: Searched) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of each head: which blocks `[blocks]` have keys, and the maxima of the query's tokens."""
        stored: dict[int, torch.Tensor] = getattr(store, "keys", {})
        if self.calibration is None:
            return
        for layer, head in self.calibration.heads:
            if layer not in stored or layer not in ask.heads:
                continue
            queries, keys = ask.heads[layer], stored[layer]
            if queries.shape[-1] != keys.shape[-1] or queries.shape[1] % keys.shape[1]:
                continue  # the layer stores hidden states, which no query can be compared with
            shared = queries.shape[1] // keys.shape[1]
            yield _maxima(ask, store, queries[:, head], keys[:, head // shared])


def _maxima(
    ask: Ask, store: Searched, queries: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks have keys, and the maxima `[batch, tokens, blocks]` of one head.

    Queries `[batch, tokens, dim]` and keys `[slots of the first tier, block, dim]` are without
    positions.
    """
    # Only the first tier keeps keys where they are compared, and its slots come first.
    size = store.high_water
    count = min(size, len(keys))
    asks = torch.ones_like(queries[..., :1]) if ask.mask is None else ask.mask[..., None]
    # All queries of a head point to one side, whatever they ask. Without what the asking tokens
    # have in common, which is that side for the most part, a head finds nothing.
    common = (queries.float() * asks).sum(1, keepdim=True) / asks.sum(1, keepdim=True).clamp(min=1)
    queries = F.normalize(queries.float() - common, dim=-1).to(keys.device, keys.dtype)
    out = torch.full((*queries.shape[:2], size), NEG_INF, device=store.device)
    out[..., :count] = block_maxima(
        queries,
        keys[:count],
        store.positions[:count].to(keys.device),
        session=store.session[:count].to(keys.device),
        sessions=ask.sessions.to(keys.device),
    ).to(store.device)
    return torch.arange(size, device=store.device) < count, out


def slices_line(ask: Ask, store: Searched, seen: torch.Tensor, heads: int) -> torch.Tensor:
    """The line `[batch, blocks]` of `ContextualRelevanceScorer` over the blocks that are seen."""
    mean = torch.zeros(*ask.states.shape[:2], store.high_water, device=seen.device)
    for row, own in enumerate(seen):
        slots = own.nonzero()[:, 0]
        if not len(slots):
            continue
        everything = torch.ones(1, len(slots), dtype=torch.bool, device=seen.device)
        for maxima in _slice_maxima(ask.states[row], store, slots, heads):
            z = standardise(maxima[None], everything, rule_for(ask.located).clamp)
            mean[row][:, slots] += z[0] / heads
    successor = store.successor[: store.high_water]
    return similarity_line(mean, ask.mask, successor, seen, rule_for(ask.located))[0]


def _slice_maxima(
    states: torch.Tensor, store: Searched, slots: torch.Tensor, heads: int
) -> torch.Tensor:
    """Largest cosine `[heads, tokens, n]` of each slice of states with one of each of n slots.

    The states are `[tokens, width]`; of the slots, the row's own, there is one at least.
    """
    # The centre of some blocks spread over all stands for that of all.
    some = slots[:: -(-len(slots) // BLOCKS_AT_ONCE)]
    vectors, held = _vectors(store, some)
    centre = (vectors * held[..., None]).sum((0, 1)) / held.sum().clamp(min=1)
    query = F.normalize(states.float(), dim=-1).to(vectors.device) - centre
    asking = [F.normalize(part, dim=-1) for part in query.tensor_split(heads, -1)]
    found = torch.full((heads, len(states), len(slots)), NEG_INF, device=slots.device)
    for first in range(0, len(slots), BLOCKS_AT_ONCE):
        at = slice(first, first + BLOCKS_AT_ONCE)
        vectors, held = _vectors(store, slots[at])
        for head, part in enumerate((vectors - centre).tensor_split(heads, -1)):
            cosines = torch.einsum("qd,ntd->qnt", asking[head], F.normalize(part, dim=-1))
            cosines = cosines.masked_fill(~held, NEG_INF)
            found[head, :, at] = cosines.amax(-1).to(found.device)
    return found


def _vectors(store: Searched, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors `[n, block, width]` float32 of slots, and which of them are tokens that can match."""
    vectors = store.states(slots.cpu()).float()
    positions = store.positions[slots].to(vectors.device)
    return vectors, (positions >= 0) & (vectors != 0).any(-1)
