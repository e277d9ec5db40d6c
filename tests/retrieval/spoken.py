"""A vocabulary of whole words, and texts in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from cmr.retrieval import Vocabulary


class Words:
    """A tokenizer whose tokens are words and marks, each known when it was first said."""

    def __init__(self, *special: str) -> None:
        self.tokens = [*special]
        self.all_special_ids = list(range(len(special)))

    def __len__(self) -> int:
        return len(self.tokens)

    def batch_decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(self.tokens[n] for n in row) for row in rows]

    def ids(self, text: str) -> torch.Tensor:
        """`[1, tokens]`: words with the space in front of them, and marks alone."""
        out = re.findall(r" ?\w+|\n|[^\w\s]", text)
        for token in out:
            if token not in self.tokens:
                self.tokens.append(token)
        return torch.tensor([[self.tokens.index(token) for token in out]])

    def vocabulary(self) -> Vocabulary:
        """That of all that was said so far."""
        found = Vocabulary.of(self, torch.device("cpu"))
        assert found is not None
        return found
