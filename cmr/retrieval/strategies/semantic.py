"""How much is like what is asked: passages by late interaction, entries by their best cosine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cmr.config import checks as check
from cmr.errors import ModelMismatchError
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import certainty_of, similarity_line
from cmr.retrieval.ask import Ask, Scored, Searched, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.selection import rule_for


@dataclass(frozen=True)
class Semantic:
    """The similarity that the default search ranks by (`Selector.fused`), of every passage.

    Attributes:
        calibration: of the model, for what is expected when nothing fits; None: see `TUNED`.

    Source: Khattab and Zaharia (2020), ColBERT.
    """

    calibration: Calibration | None = None

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in standard deviations from what is usual; see `Strategy`."""
        seen = visible(ask, store)
        rule = rule_for(ask.located, self.calibration)
        successor = store.successor[: store.high_water]
        line = similarity_line(ask.maxima(store), ask.mask, successor, seen, rule)[0]
        return Scored(line, certainty_of(line, seen.sum(-1), rule))


class SemanticMemoryMatcher:
    """Compares the states of a question with stored ones. Also a strategy for entries.

    The similarity of an entry is its largest cosine with a token of the question, so that a
    threshold means the same for a question of any length. (MaxSim's mean over the question's
    tokens would be lower the more a question says.)

    Args:
        hidden_size: width of the states, 1 or more.
        similarity_threshold: least cosine, in [-1, 1]; what is below is not found. None: no limit.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(self, hidden_size: int, similarity_threshold: float | None = None) -> None:
        self.hidden_size = check.integer("hidden_size", hidden_size, 1)
        if similarity_threshold is not None:
            similarity_threshold = check.real(
                "similarity_threshold", similarity_threshold, -1.0, 1.0
            )
        self.similarity_threshold = similarity_threshold

    def __call__(
        self, query: torch.Tensor, entries: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Similarities of stored states.

        Args:
            query: `[batch, tokens, hidden]`, any float dtype and norm.
            entries: `[entries, hidden]` or `[batch, entries, hidden]`, any float dtype and norm.
            mask: `[batch, tokens]` bool, False for tokens that do not ask; None: all do.

        Returns:
            `[batch, entries]` float32 in [-1, 1]; `-inf` below the threshold, and for a row that
            does not ask. The cosine with a state that is all 0 is 0.

        Raises:
            ModelMismatchError: a width is not `hidden_size`.
            ValueError: shapes do not fit each other.
        """
        for name, states, ranks in (("query", query, (3,)), ("entries", entries, (2, 3))):
            if states.ndim not in ranks:
                wanted = "[batch, tokens, hidden]" if name == "query" else "[entries, hidden]"
                raise ValueError(f"{name}: {wanted} expected, got {list(states.shape)}")
            if states.shape[-1] != self.hidden_size:
                raise ModelMismatchError(
                    f"{name}: hidden size {self.hidden_size} expected, got {states.shape[-1]}"
                )
        if entries.ndim == 3 and len(entries) != len(query):
            raise ValueError(f"entries: a batch of {len(query)} expected, got {len(entries)}")
        if mask is not None and mask.shape != query.shape[:2]:
            raise ValueError(f"mask: {list(query.shape[:2])} expected, got {list(mask.shape)}")
        # In float32 whatever comes: a threshold means the same for every data type.
        unit, stored = (F.normalize(states.float(), dim=-1) for states in (query, entries))
        return self.of_maxima(unit @ stored.transpose(-1, -2), mask)

    def of_maxima(self, maxima: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The same of cosines `[batch, tokens, entries]` float32 that are known already."""
        if mask is not None:
            maxima = maxima.masked_fill(~mask[:, :, None], NEG_INF)
        # Nobody asks: the maximum over nothing is no number.
        if not maxima.shape[1]:
            return maxima.new_full((len(maxima), maxima.shape[2]), NEG_INF)
        found = maxima.amax(1)
        if self.similarity_threshold is None:
            return found
        return found.masked_fill(found < self.similarity_threshold, NEG_INF)

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Similarities of the blocks, by their best token; see `Strategy`."""
        found = self.of_maxima(ask.maxima(store), ask.mask)
        return Scored(found.masked_fill(~visible(ask, store), NEG_INF))
