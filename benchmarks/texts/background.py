"""What a haystack's facts are planted in: essays while they last, then all prose, then sources."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from benchmarks.texts.stream import Text, documents, essay_texts

_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s+[\"'(]?[A-Z])")


def _sources(seed: int) -> Iterator[list[Text]]:
    """Texts to take the background from, the smallest and most readable first."""
    own = essay_texts()
    random.Random(f"essays {seed}").shuffle(own)
    yield own
    everything = documents(seed)
    yield [text for text in everything if text.prose]
    yield everything


def _pieces(text: Text) -> list[str]:
    """Sentences of prose, paragraphs of code, with the blanks before them."""
    parted = _SENTENCE_END.split(text.text) if text.prose else text.text.split("\n\n")
    if text.prose:
        return ["\n\n" + parted[0], *parted[1:]]
    return ["\n\n" + piece for piece in parted]


def background_ids(tokenizer: Any, tokens: int, seed: int) -> tuple[list[int], list[int]]:
    """At least `tokens` token ids, and the offsets at which a sentence of prose ends.

    Raises:
        ValueError: when all texts together are not that long.
    """
    ids: list[int] = []
    for texts in _sources(seed):
        if sum(len(text.text) for text in texts) < 3 * tokens:  # a token has some four letters
            continue
        ids, ends = [], []
        for text in texts:
            pieces = _pieces(text)
            encoded = tokenizer(pieces, add_special_tokens=False, verbose=False)
            for piece, piece_ids in zip(pieces, encoded["input_ids"], strict=True):
                ids += piece_ids
                if text.prose and piece.rstrip().endswith((".", "!", "?")):
                    ends.append(len(ids))
            if len(ids) >= tokens:
                return ids, ends
    raise ValueError(f"at most {len(ids):,} tokens of background are to be had, got {tokens:,}")
