"""The words of what is asked, by stored token ids: how rare they are, and which passages say them.

Source: Robertson and Zaragoza (2009), BM25, with b = 0, as passages are equally long.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cmr.retrieval.ask import QueryParts, Searched
from cmr.retrieval.vocabulary import NO_WORD, Vocabulary

SATURATION = 1.2
"""BM25's k1: a word that stands in a passage twice says little more than once."""


class Words(NamedTuple):
    """What the words of a query say, by the frequencies among what each row may see alone.

    Attributes:
        rarity: `[batch, tokens]` float32, inverse document frequency of each token's word; of what
            is no word that of a word in every passage.
        scores: `[batch, parts, blocks]` float32, BM25 of the passage that begins at each block for
            the words of each part, each counted once; at least 0.
    """

    rarity: torch.Tensor
    scores: torch.Tensor


def words_of(
    token_ids: torch.Tensor,
    parts: QueryParts,
    vocabulary: Vocabulary,
    store: Searched,
    seen: torch.Tensor,
) -> Words:
    """The words of `token_ids` `[batch, tokens]` in passages; `seen` `[batch, blocks]` bool.

    A passage is a block and its successor. No row learns of what another one stored.
    """
    size, tokens = store.high_water, token_ids.shape[1]
    stored = vocabulary.classes_of(store.token_ids[:size])
    stored = stored.masked_fill(store.positions[:size] < 0, NO_WORD)
    follows = store.successor[:size]
    place = torch.arange(tokens, device=seen.device)
    rarity = torch.zeros(token_ids.shape, device=seen.device)
    scores = torch.zeros(*parts.marked.shape, size, device=seen.device)
    for row, classes in enumerate(vocabulary.classes_of(token_ids)):
        of = parts.of[row]
        # The first token with a word stands for it: which token a stored one is, or none, is then
        # looked up in a table, and no distinct words are sought, for which a host would wait.
        first = torch.full((vocabulary.tables.size,), tokens, device=seen.device)
        first.scatter_reduce_(0, torch.where(of >= 0, classes, NO_WORD), place, "amin")
        first[NO_WORD] = tokens
        counts = torch.zeros(size, tokens + 1, device=seen.device)
        counts.scatter_add_(1, first[stored], seen[row, :, None].expand(stored.shape).float())
        counts = counts[:, :tokens]
        counts = counts + counts[follows.clamp(min=0)] * (follows >= 0).float()[:, None]
        total, holding = seen[row].sum(), (counts * seen[row, :, None] > 0).sum(0)
        rare = rarity_of(holding, total)
        says = rare * saturated(counts)
        own = first[classes]
        words = own < tokens
        rarity[row] = torch.where(words, rare[own.clamp(max=tokens - 1)], 0.5 / (total + 0.5))
        member = torch.zeros(parts.marked.shape[1] * (tokens + 1), device=seen.device)
        at = of.clamp(min=0) * (tokens + 1) + own
        member.scatter_reduce_(0, at, (of >= 0).float(), "amax")
        scores[row] = member.view(-1, tokens + 1)[:, :tokens] @ says.t()
    return Words(rarity, scores)


def rarity_of(holding: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Inverse document frequency of words by how many of `total` passages hold each; any shape."""
    return torch.log1p((total - holding + 0.5) / (holding + 0.5))


def saturated(counts: torch.Tensor) -> torch.Tensor:
    """How much it says that a word stands so often in a passage, float32 of any shape."""
    return counts * (SATURATION + 1) / (counts + SATURATION)
