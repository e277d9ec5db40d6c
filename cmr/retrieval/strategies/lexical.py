"""How many rare tokens of the question stand in a passage, by the stored token ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.words import rarity_of, saturated
from cmr.retrieval.ask import Ask, Scored, Searched, visible


@dataclass(frozen=True)
class LexicalOverlap:
    """Inverse document frequency of the question's tokens that a passage holds.

    A passage is a block and its successor; frequencies are those of the row's own passages, and a
    token that the question says twice counts once. Rows whose tokens nobody knows score 0.

    Source: Robertson and Zaragoza (2009), BM25, with b = 0, as passages are equally long.
    """

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores of at least 0; see `Strategy`."""
        size = store.high_water
        seen = visible(ask, store)
        scores = torch.zeros(seen.shape, device=seen.device)
        if ask.token_ids is not None and size:
            known = ask.token_ids >= 0
            known = known if ask.mask is None else known & ask.mask
            stored = store.token_ids[:size].masked_fill(store.positions[:size] < 0, -1)
            for row, tokens in enumerate(ask.token_ids):
                wanted = tokens[known[row]].unique().to(stored.device)
                if len(wanted):
                    scores[row] = _row(wanted, stored, store.successor[:size], seen[row])
        return Scored(scores.masked_fill(~seen, NEG_INF))


def _row(
    wanted: torch.Tensor, stored: torch.Tensor, successor: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Scores `[blocks]` of one row for `wanted` `[distinct]` tokens, rising."""
    # Where each stored token would be among the wanted ones, which are few and rise: no table of
    # the vocabulary is needed, and no comparison of all with all.
    at = torch.searchsorted(wanted, stored).clamp(max=len(wanted) - 1)
    same = (wanted[at] == stored) & seen[:, None]
    counts = torch.zeros(len(stored), len(wanted), device=stored.device)
    counts.scatter_add_(1, at, same.float())
    # A passage is a block and its successor, if the row sees it (its counts are 0 if not).
    follows = (successor >= 0).float()
    counts = counts + counts[successor.clamp(min=0)] * follows[:, None]
    total = seen.sum()
    holding = ((counts > 0) & seen[:, None]).sum(0)
    return (rarity_of(holding, total) * saturated(counts)).sum(-1)
