"""The words of what is asked in the passages of a store; see `cmr.kernels.words`."""

from __future__ import annotations

import torch

from cmr.kernels.words import Words, words
from cmr.retrieval.ask import QueryParts, Searched
from cmr.retrieval.vocabulary import Vocabulary


def words_of(
    token_ids: torch.Tensor,
    parts: QueryParts,
    vocabulary: Vocabulary,
    store: Searched,
    seen: torch.Tensor,
) -> Words:
    """The words of `token_ids` `[batch, tokens]` in passages; `seen` `[batch, blocks]` bool."""
    size, tables = store.high_water, vocabulary.tables
    return words(
        token_ids,
        parts.of,
        store.token_ids[:size],
        store.positions[:size],
        store.successor[:size],
        seen,
        tables.classes,
        tables.size,
        parts.marked.shape[1],
    )
