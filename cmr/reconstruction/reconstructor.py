"""`LayeredStateReconstructor`: many recalled states in, few to be read out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cmr.config import RECONSTRUCTION_METHODS
from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.memory.entry import MemoryEntry
from cmr.memory.state_checks import expect_device, expect_mask, expect_states
from cmr.reconstruction.gathered import Gathered
from cmr.reconstruction.limits import Limits
from cmr.reconstruction.methods import match, plan_rows
from cmr.reconstruction.read_plan import ReadPlan
from cmr.reconstruction.readout import cosines
from cmr.reconstruction.result import Reconstruction


class LayeredStateReconstructor:
    """Rebuilds, from recalled states, those that a layer is to read: at most as many as allowed.

    Entries that follow each other in a text are one passage. The passage that holds the best match
    with the question is the best one. Methods, where more is recalled than may be read:

    - 'attention': the states that match best, with what stands around them, as they are.
    - 'weighted_sum': half as many of them; all others in groups of neighbours, each a sum weighed
      by exp(match).
    - 'hierarchical': the best passage whole, the others in groups that get coarser.
    - 'recompute': like 'attention', of states that the model computes anew from token ids.

    Args:
        hidden_size: width of the states, 1 or more.
        method: one of the above; may be set later.
        max_memory_tokens: most states to read, 1 or more; None: no such limit.
        compression_ratio: share of the recalled states to read, in (0, 1], rounded down and one at
            least; None: all. The smaller of the two limits holds.
        model: a transformers decoder, for 'recompute'.

    Raises:
        ConfigError: a value is out of its range, or 'recompute' has no model.
    """

    def __init__(
        self,
        hidden_size: int,
        method: str = "hierarchical",
        max_memory_tokens: int | None = 128,
        compression_ratio: float | None = 0.6,
        model: Any = None,
    ) -> None:
        self.hidden_size = check.integer("hidden_size", hidden_size, 1)
        self.model = model
        self.limits = Limits(max_memory_tokens, compression_ratio)
        self.method = method

    @property
    def method(self) -> str:
        """The method in use."""
        return self._method

    @method.setter
    def method(self, name: str) -> None:
        check.choice("reconstruction_method", name, RECONSTRUCTION_METHODS)
        if name == "recompute" and self.model is None:
            raise ConfigError(
                "reconstruction_method='recompute': a model to compute with expected "
                "(LayeredStateReconstructor(..., model=model)), got None"
            )
        self._method = name

    def reconstruct(
        self,
        memories: Sequence[MemoryEntry] | torch.Tensor,
        query_states: torch.Tensor,
        *,
        layer_idx: int | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> Reconstruction:
        """The states to read.

        Args:
            memories: entries whose `hidden_state` is `[hidden]` or `[tokens, hidden]`; or states
                `[n, hidden]`, taken as one run of text. Any float dtype, all the same.
            query_states: `[tokens, hidden]` or `[batch, tokens, hidden]`, any float dtype, on the
                same device: what asks, the tokens of all rows together.
            layer_idx: the layer that is to read. Entries of other layers are left out: their states
                mean nothing there. None: none is.
            attention_mask: the query's shape without `hidden`, 0 or False for tokens that do not
                ask; None: all do.

        Returns:
            States in the memories' dtype, best passage first, each in the order of the text; none
            where nothing was recalled.

        Raises:
            TypeError: not of the kinds above.
            ValueError: shapes do not fit.
            ModelMismatchError: a width, device or dtype is another one.
            ConfigError: 'recompute' of states whose tokens are not known.
        """
        expect_states("query_states", query_states, self.hidden_size, (2, 3))
        asks = expect_mask(attention_mask, query_states)
        # One row: all that ask, whatever their batch row, share what is reconstructed.
        query = query_states.reshape(1, -1, self.hidden_size)
        asks = None if asks is None else asks.reshape(1, -1)
        gathered = self._gathered(memories, query_states, layer_idx)
        mask = torch.ones(1, len(gathered.states), dtype=torch.bool, device=query.device)
        matches = match(query, asks, gathered.states[None], mask)[0].cpu()
        # The methods give the first passages the most room.
        gathered, matches = gathered.best_first(matches)
        plan = plan_rows(self.method, matches[None], gathered.runs, mask.cpu(), self.limits)
        states = plan.to(query.device).apply(gathered.states[None, None])[0, 0]
        return self._result(gathered, plan, states, query, asks)

    __call__ = reconstruct

    def _gathered(
        self, memories: Sequence[MemoryEntry] | torch.Tensor, query: torch.Tensor, layer: int | None
    ) -> Gathered:
        if layer is not None:
            layer = check.integer("layer_idx", layer, 0)
        if isinstance(memories, torch.Tensor):
            if self.method == "recompute":
                raise ConfigError(
                    "reconstruction_method='recompute': entries with the ids of their tokens "
                    "expected, got a tensor of states"
                )
            gathered = Gathered.of_states(memories, self.hidden_size, layer)
            expect_device("memories", memories, query.device)
            return gathered
        gathered = Gathered.of_entries(memories, self.hidden_size, layer, query)
        if self.method == "recompute":
            return gathered.recomputed(self.model, memories)
        return gathered

    def _result(
        self,
        gathered: Gathered,
        plan: ReadPlan,
        states: torch.Tensor,
        query: torch.Tensor,
        asks: torch.Tensor | None,
    ) -> Reconstruction:
        """The states with what is known of the tokens that they were made of."""
        m = len(states)
        members, shares = plan.members[0], plan.shares[0]
        # A read token is where its first member is; its newest member says how new it is.
        first, inside = members[:, 0], members >= 0
        at = members.clamp(min=0)
        sources = gathered.sources[at]
        return Reconstruction(
            states=states,
            # Even ones: what counts more is told by the sum itself, not in front of it.
            weights=torch.full((m,), 1.0 / max(1, m), device=states.device),
            similarity=_similarity(query, asks, states),
            relevance=(gathered.relevance[at] * shares).sum(-1),
            timestamp=gathered.timestamp[at].masked_fill(~inside, 0.0).amax(-1),
            passages=gathered.runs[first],
            layers=gathered.layers[first],
            sources=tuple(
                tuple(dict.fromkeys(row[held].tolist()))
                for row, held in zip(sources, inside, strict=True)
            ),
            method=self.method,
        )


def _similarity(
    query: torch.Tensor, asks: torch.Tensor | None, states: torch.Tensor
) -> torch.Tensor:
    """`[m]` float32, the largest cosine of each state with one that asks; 0 where none does."""
    held = torch.ones(1, len(states), dtype=torch.bool, device=states.device)
    cosine = cosines(query, states[None], held)[0]
    if asks is not None:
        cosine = cosine[asks[0]]
    if not len(cosine):
        return states.new_zeros(len(states), dtype=torch.float32)
    return cosine.amax(0).float()
