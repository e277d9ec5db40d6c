"""The systems that are compared: what each shows the model of a document when it is asked."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cmr.evaluation.answers import FirstToken, Prefilled, answer
from cmr.evaluation.documents import Document
from cmr.evaluation.lexical import BM25
from cmr.evaluation.passages import shown, tokens_of
from cmr.evaluation.prompts import chat
from cmr.integration.attach import attach

UNTOLD = 192
"""Tokens that `bm25` shows where memory was not asked, or recalled nothing."""
Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Asked:
    """With what is asked: the model, its tokenizer, the longest reply, memory's settings.

    `instructed` says above a text that is shown what it is for; `window` is that of memory; `kept`
    is how many tokens of a text a press keeps, or below 1 which share of them.
    """

    model: Any
    tokenizer: Any
    new_tokens: int
    instructed: bool
    window: int
    settings: Mapping[str, Any]
    kept: float


@dataclass(frozen=True)
class Reply:
    """A reply: seconds to its first token and to its end, and the tokens [start, end) shown.

    `shown` is None where each head sees others; `more` goes into the row.
    """

    text: str
    first_seconds: float
    seconds: float
    shown: Spans | None
    more: Mapping[str, Any] = field(default_factory=dict)


class System(ABC):
    """Answers questions about one document after the other."""

    document: Document

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def open(self, document: Document) -> None:
        """Prepare for questions about a document; those before are not asked about any more."""
        self.document = document

    def refuses(self, question: str) -> str:
        """Why a question about the document cannot be asked; empty: it can."""
        return ""

    @abstractmethod
    def ask(self, question: str, recalled: Spans | None) -> Reply:
        """The greedy reply to a question; `recalled` are the passages that memory read for it."""

    def close(self) -> None:  # noqa: B027 (most have nothing to end)
        """Called at the end, also after an error: the model is as it was."""


class Generating(System):
    """Asks the model's stock `generate`."""

    memory: Any = None

    def ask(self, question: str, recalled: Spans | None) -> Reply:
        """What `say` says, and how long it took."""
        look, began = FirstToken(self.memory), time.perf_counter()
        text, spans = self.say(question, recalled, look)
        assert look.at is not None
        return Reply(text, look.at - began, time.perf_counter() - began, spans)

    @abstractmethod
    def say(self, question: str, recalled: Spans | None, look: FirstToken) -> tuple[str, Spans]:
        """The reply, and the tokens [start, end) of the document that were shown."""

    def generate(self, ids: list[int], look: FirstToken) -> str:
        """The reply to a prompt."""
        asked = self.asked
        return answer(
            asked.model, asked.tokenizer, ids, asked.new_tokens, stopping_criteria=look.among()
        )


class Memory(Generating):
    """The question alone, with a memory that read the document."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        # A failure that is left out of an answer would be taken for what memory says.
        settings = {"strict": True, **asked.settings}
        self.memory = attach(asked.model, tokenizer=asked.tokenizer, **settings)

    def open(self, document: Document) -> None:
        """Reads it, in place of what was read before."""
        super().open(document)
        # What another document says is not to be recalled.
        self.memory.clear()
        self.memory.read(torch.tensor(document.token_ids))
        self.spoilt = False

    def ask(self, question: str, recalled: Spans | None) -> Reply:
        """Of a memory that holds the document and nothing that was asked before."""
        if self.spoilt:
            self.open(self.document)
        return super().ask(question, recalled)

    def say(self, question: str, recalled: Spans | None, look: FirstToken) -> tuple[str, Spans]:
        """Nothing of the document stands in the prompt."""
        ids = chat(self.asked.tokenizer, question)
        # What does not fit into the window leaves it and becomes memory, too.
        self.spoilt = len(ids) + self.asked.new_tokens > self.memory.config.window
        text = self.generate(ids, look)
        return text, [(passage.start, passage.end) for passage in look.passages]

    def close(self) -> None:
        """Takes the memory off the model."""
        self.memory.detach()


class FullContext(Generating):
    """The whole document before the question; it runs through the model once."""

    def refuses(self, question: str) -> str:
        """Where document, question and reply are longer than the model can take."""
        return too_long(self.asked, self.document, question)

    def open(self, document: Document) -> None:
        """Runs it through the model, if it can take it."""
        super().open(document)
        if not self.refuses(""):
            asked, ids = self.asked, document.token_ids
            self.prompt = Prefilled(asked.model, asked.tokenizer, ids, asked.instructed)

    def say(self, question: str, recalled: Spans | None, look: FirstToken) -> tuple[str, Spans]:
        """All of the document stands in the prompt."""
        text = self.prompt.answer(question, self.asked.new_tokens, stopping_criteria=look.among())
        return text, [(0, len(self.document.token_ids))]


class Excerpt(Generating):
    """Some of the document as text before the question."""

    @abstractmethod
    def spans(self, question: str, recalled: Spans | None) -> Spans:
        """The tokens [start, end) that are shown."""

    def say(self, question: str, recalled: Spans | None, look: FirstToken) -> tuple[str, Spans]:
        """What is shown stands in reading order before the question."""
        asked, spans = self.asked, self.spans(question, recalled)
        context = shown(asked.tokenizer, self.document.token_ids, spans) or None
        ids = chat(asked.tokenizer, question, context, asked.instructed)
        return self.generate(ids, look), spans


class Window(Excerpt):
    """As much of the document's end as makes a prompt of the window's size."""

    def spans(self, question: str, recalled: Spans | None) -> Spans:
        """The end of the document."""
        asked, total = self.asked, len(self.document.token_ids)
        room = asked.window - len(chat(asked.tokenizer, question, [], asked.instructed))
        return [(max(0, total - room), total)] if room > 0 else []


class Bm25(Excerpt):
    """The passages that BM25 finds, as many and as many tokens as memory read."""

    def open(self, document: Document) -> None:
        """Indexes it."""
        super().open(document)
        self.index = BM25(self.asked.tokenizer, document.token_ids)

    def spans(self, question: str, recalled: Spans | None) -> Spans:
        """The best passages."""
        # As many tokens for both, or the one that shows more would win by that.
        tokens = len(tokens_of(recalled or [])) or UNTOLD
        return self.index.spans(question, tokens, len(recalled or []) or 2)


class PassagesAsText(Excerpt):
    """The passages that memory chose."""

    def spans(self, question: str, recalled: Spans | None) -> Spans:
        """What memory read."""
        return recalled or []


def too_long(asked: Asked, document: Document, question: str) -> str:
    """Why a document with a question behind it is too long for the model; empty: it is not."""
    # Beyond its positions most models say anything: that would be no comparison.
    limit = getattr(asked.model.config, "max_position_embeddings", None)
    prompt = chat(asked.tokenizer, question, document.token_ids, asked.instructed)
    needed = len(prompt) + asked.new_tokens
    if limit is None or needed <= limit:
        return ""
    return f"{needed:,} tokens are needed, the model takes {limit:,}"
