"""`ContextBlender`: several recalled contexts as one memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from cmr.config import CRITERIA
from cmr.config import checks as check
from cmr.memory.state_checks import expect_device, expect_dtype, expect_states
from cmr.reconstruction.result import COLUMNS, Reconstruction

DEFAULT_WEIGHTS = {"relevance": 0.4, "similarity": 0.4, "recency": 0.2}
NEWER_PER_HALF = 0.25
"""Share of all states that is newer than one whose recency is one half."""
ROUNDING = 1e-6
"""What the cosine of a state with itself may be short of 1."""


class ContextBlender:
    """Joins what was recalled in several ways: of other layers, sequences, by other strategies.

    Every state gets a weighted mean of four criteria, each in [0, 1]:

    - relevance: as it was stored.
    - similarity: place between the least and the largest similarity with what asked; all are 1
      where all are equal.
    - recency: `2 ** (-newer / (n / 4))`, with `newer` how many of the n states are newer.
    - diversity: 1 less the largest cosine, where that is above 0, with a state of its layer that
      counts more by the other three and is not one with it.

    These are divided by their sum. States of one layer that point the same way are one: their mean
    by these weights, with the sum of their weights. So what several strategies found counts more,
    and is read once.

    Args:
        hidden_size: width of the states, 1 or more.
        criteria_weights: criterion (see `cmr.config.CRITERIA`) to its weight, at least 0, one above
            0, scaled to sum 1; one that is not named weighs 0. None: `DEFAULT_WEIGHTS`.
        merge_similarity: cosine, in [0, 1], from which on two states are one.
        max_memory_tokens: most states of the blend, those of the largest weights, 1 or more; None:
            all.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(
        self,
        hidden_size: int,
        criteria_weights: Mapping[str, float] | None = None,
        merge_similarity: float = 0.99,
        max_memory_tokens: int | None = None,
    ) -> None:
        self.hidden_size = check.integer("hidden_size", hidden_size, 1)
        weights = DEFAULT_WEIGHTS if criteria_weights is None else criteria_weights
        given = dict(check.weights("criteria_weights", weights, CRITERIA))
        total = sum(given.values())
        self.criteria_weights = {name: given.get(name, 0.0) / total for name in CRITERIA}
        self.merge_similarity = check.real("merge_similarity", merge_similarity, 0.0, 1.0)
        if max_memory_tokens is not None:
            max_memory_tokens = check.integer("max_memory_tokens", max_memory_tokens, 1)
        self.max_memory_tokens = max_memory_tokens

    def blend(self, contexts: Sequence[Reconstruction]) -> Reconstruction:
        """One memory of several.

        Args:
            contexts: with states of one width, dtype and device; may be empty.

        Returns:
            States in the order in which they came first, with weights that sum to 1. `sources` are
            places in the contexts' states, counted through all contexts. Runs of text stay those of
            their context.

        Raises:
            TypeError: something is no `Reconstruction`.
            ValueError: no context at all.
            ModelMismatchError: a width, dtype or device is another one.
        """
        joined = self._joined(contexts)
        if not len(joined):
            return joined
        cosine = _cosines(joined)
        heads = self._heads(cosine)
        weights = self._weights(joined, cosine, heads.to(cosine.device))
        merged = _merged(replace(joined, weights=weights), heads)
        if self.max_memory_tokens is None or len(merged) <= self.max_memory_tokens:
            return merged
        best = merged.weights.cpu().argsort(descending=True, stable=True)
        return merged.select(best[: self.max_memory_tokens].sort().values.to(merged.states.device))

    __call__ = blend

    def _joined(self, contexts: Sequence[Reconstruction]) -> Reconstruction:
        """All states one behind the other, with the weights that they came with."""
        if not len(contexts):
            raise ValueError("contexts: at least one Reconstruction expected, got none")
        for context in contexts:
            if not isinstance(context, Reconstruction):
                kind = type(context).__name__
                raise TypeError(f"contexts: Reconstruction expected, got {kind}")
            states, first = context.states, contexts[0].states
            expect_states("contexts", states, self.hidden_size, (2,))
            expect_device("contexts", states, first.device)
            expect_dtype("contexts", states, first, "of the first")
        device, before = contexts[0].states.device, 0
        columns = {
            name: torch.cat([getattr(context, name).to(device) for context in contexts])
            for name in COLUMNS
        }
        # Runs of one context stay apart from those of another.
        for part in columns["passages"].split([len(context) for context in contexts]):
            part += before
            before = int(part.max()) + 1 if len(part) else before
        kinds = {context.method for context in contexts}
        return Reconstruction(
            **columns,
            sources=tuple((i,) for i in range(len(columns["states"]))),
            method=kinds.pop() if len(kinds) == 1 else "weighted_sum",
        )

    def _weights(
        self, joined: Reconstruction, cosine: torch.Tensor, heads: torch.Tensor
    ) -> torch.Tensor:
        """`[n]` float32 of sum 1."""
        similarity, timestamp, n = joined.similarity, joined.timestamp, len(joined)
        low, high = similarity.aminmax()
        # A place between the extremes: similarities of states lie close together, far from 0.
        place = torch.where(high > low, (similarity - low) / (high - low), 1.0)
        ages = timestamp.sort().values
        newer = n - torch.searchsorted(ages, timestamp, right=True)
        recency = torch.exp2(-newer / max(1.0, NEWER_PER_HALF * n))
        weights = self.criteria_weights
        total = weights["relevance"] * joined.relevance + weights["similarity"] * place
        total = total + weights["recency"] * recency
        if weights["diversity"]:
            total = total + weights["diversity"] * _diversity(total, cosine, heads)
        return total / total.sum() if bool(total.sum() > 0) else torch.full_like(total, 1.0 / n)

    def _heads(self, cosine: torch.Tensor) -> torch.Tensor:
        """For each state the first one `[n]` int64, itself or before it, that it is one with."""
        # Compared on the CPU, where the loop below waits for nobody.
        alike = (cosine >= self.merge_similarity - ROUNDING).cpu()
        places = torch.arange(len(alike))
        heads = places.clone()
        # One after the other: a state that is one with an earlier one takes no others with it.
        for place in range(len(heads)):
            if heads[place] == place:
                free = (heads == places) & (places > place)
                heads[alike[place] & free] = place
        return heads


def _cosines(joined: Reconstruction) -> torch.Tensor:
    """Of each state with each `[n, n]` float32, -inf for states of different layers."""
    unit = F.normalize(joined.states.float(), dim=-1)
    return (unit @ unit.T).masked_fill(joined.layers[:, None] != joined.layers, -torch.inf)


def _diversity(base: torch.Tensor, cosine: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """How little each state is like those that count more so far, `[n]` float32 in [0, 1]."""
    place = torch.empty_like(heads)
    # Stable: of equal ones the earlier counts more.
    place[base.argsort(descending=True, stable=True)] = torch.arange(len(base), device=heads.device)
    # Compared with every state that counts more, but for those that it is one with.
    above = (place < place[:, None]) & (heads != heads[:, None])
    return 1.0 - cosine.masked_fill(~above, 0.0).amax(1).clamp(0.0, 1.0)


def _merged(joined: Reconstruction, heads: torch.Tensor) -> Reconstruction:
    """The states that are one with each head as their weighted mean."""
    kept, into = heads.to(joined.states.device).unique(return_inverse=True)
    many = len(kept)
    if many == len(heads):
        return joined
    # A merged state counts as much as its members together.
    weights = torch.zeros(many, device=into.device).index_add_(0, into, joined.weights)
    # Where all weights of a group are 0, each of its states counts the same.
    count = torch.bincount(into, minlength=many)
    even = (1.0 / count)[into]
    share = torch.where(weights[into] > 0, joined.weights / weights[into], even)
    states = torch.zeros(many, joined.states.shape[1], device=into.device)
    states.index_add_(0, into, joined.states.float() * share[:, None])
    # What stands alone keeps its bits.
    alone = (count == 1)[:, None]
    states = torch.where(alone, joined.states[kept], states.to(joined.states.dtype))
    sources: list[list[int]] = [[] for _ in range(many)]
    for i, group in enumerate(into.tolist()):
        sources[group].append(i)
    columns = {name: getattr(joined, name)[kept] for name in COLUMNS}
    # A merged state is as good, and as new, as the best and the newest of its members.
    for name in ("similarity", "relevance", "timestamp"):
        columns[name].scatter_reduce_(0, into, getattr(joined, name), "amax")
    columns |= {"states": states, "weights": weights}
    return replace(joined, **columns, sources=tuple(map(tuple, sources)))
