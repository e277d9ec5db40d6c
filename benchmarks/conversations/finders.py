"""What is compared: each says which tokens of a conversation it would show for a message."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.baselines.dense import Dense
from benchmarks.baselines.lexical import Lexical
from benchmarks.baselines.passages import passage_texts
from cmr.evaluation.answers import ask
from cmr.evaluation.passages import PASSAGE, STRIDE, filled
from cmr.evaluation.prompts import chat

TOKENS = 224
"""Shown by the text retrievers: about what memory recalls in the mean with its defaults."""
PASSAGES = 2
"""That they are in. One found as much, three or four less."""
Spans = list[tuple[int, int]]


class Remembering:
    """A memory that has read the conversation, asked through stock `generate`."""

    def __init__(self, model: Any, tokenizer: Any, memory: Any, token_ids: list[int]) -> None:
        self.model, self.tokenizer, self.memory = model, tokenizer, memory
        memory.clear()
        memory.read(torch.tensor(token_ids))

    def spans(self, message: str) -> Spans:
        """What the message recalled, as a chat message and before the first new token."""
        prompt = chat(self.tokenizer, message)
        _, passages = ask(self.model, self.tokenizer, self.memory, prompt, new_tokens=1)
        return [(p.start, p.end) for p in passages]


class Retrieving:
    """BM25 or a dense retriever over passages of 64 tokens that start every 32."""

    def __init__(self, name: str, tokenizer: Any, token_ids: list[int], tokens: int) -> None:
        texts = passage_texts(tokenizer, token_ids)
        self.index: Any = Dense(texts) if name == "dense" else Lexical(texts)
        self.tokens, self.total = tokens, len(token_ids)

    def spans(self, message: str) -> Spans:
        """The two best passages for the whole message, widened, together `tokens` tokens."""
        order = (-self.index.scores(message)).argsort(kind="stable")
        ranked = ((STRIDE * int(i), STRIDE * int(i) + PASSAGE) for i in order)
        return filled(ranked, self.tokens, PASSAGES, self.total)
