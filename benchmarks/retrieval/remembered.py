"""A haystack in an attached memory: what its search chooses for the haystack's questions."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.texts.haystack import BLOCK, Asked, Haystack
from cmr.evaluation.passages import tokens_of
from cmr.evaluation.prompts import chat

Span = tuple[int, int]
"""Tokens [start, end) of a haystack."""


class Shown(NamedTuple):
    """A passage that was chosen: its first block, and what is read with its neighbours."""

    first: int
    read: Span


Ranked = tuple[list[Shown], float]


def around(first: int, beside: int) -> Span:
    """The passage that begins with a block, and so many blocks beside it."""
    return (first - beside) * BLOCK, (first + 2 + beside) * BLOCK


class Remembered:
    """A haystack in an attached memory, and its questions as the search is asked them."""

    def __init__(self, model: Any, tokenizer: Any, haystack: Haystack, settings: Any) -> None:
        import cmr

        blocks = -(-len(haystack.token_ids) // BLOCK)
        with warnings.catch_warnings():
            # What is found is measured and nothing read: a layer is stored because one must be.
            warnings.simplefilter("ignore", cmr.CMRWarning)
            self.memory = cmr.attach(
                model, tokenizer=tokenizer, budget=blocks * BLOCK, threshold=0.0, **settings
            )
        self.core = self.memory._core
        begun = time.perf_counter()
        self.memory.read(torch.tensor(haystack.token_ids))
        self.read_seconds = time.perf_counter() - begun
        self.asks = [self._ask(model, chat(tokenizer, q.text)) for q in haystack.questions]

    def _ask(self, model: Any, prompt: list[int]) -> Any:
        """What the search is given for a prompt; nothing is recalled for it."""
        noted: list[Any] = []
        search = self.core.search

        def note(ask: Any, *how: Any) -> Any:
            noted.append(ask)
            return search(ask, *how)

        self.core.search = note
        before = self.core.retriever
        self.core.retriever = before.with_settings(strategy="contextual_relevance")
        try:
            with torch.inference_mode():
                model.get_decoder()(input_ids=torch.tensor([prompt]), use_cache=False)
        finally:
            self.core.search, self.core.retriever = search, before
        return noted[0]

    def ranker(self, strategy: str, taken: int) -> Callable[[int], Ranked]:
        """Gives, for the number of a question, the passages chosen and the seconds it took.

        They are read with a block beside them, no further than their lines go on.
        """
        settings: dict[str, Any] = {"blocks": taken, "neighbours": 0, "threshold": 0.0}
        if strategy != "default":
            settings |= {"strategy": strategy, "gain": 0.0}
        finder = self.core.retriever.with_settings(**settings)
        beside = finder.with_settings(neighbours=1)
        self.core.retriever = finder
        if strategy == "hierarchical":  # searches go on exactly until the clusters are found
            hierarchy = finder.strategy.hierarchy(self.core.ring)
            if self.core.ring.high_water >= hierarchy.exact_below:
                hierarchy.rebuild(self.core.ring, wait=True)

        def ranked(number: int) -> Ranked:
            begun = time.perf_counter()
            ask = self.asks[number]
            if self.core.index_digest is None:  # noted as the model has them
                with self.memory._stepper.alone():
                    ask = self.core.asked(ask, finder)
            choice = self.core.search(ask)
            seconds = time.perf_counter() - begun
            starts = choice.table[0, :, 0]
            first = self.core.ring.positions[starts[starts >= 0]].amax(-1) // BLOCK
            within = self.core.search(ask, beside).within[0]
            out = []
            for place, (start, last) in zip(first.tolist(), within.tolist(), strict=False):
                widest = around(place, 1)
                out.append(Shown(place, (max(start, widest[0]), min(last + 1, widest[1]))))
            return out, seconds

        return ranked


def share_found(asked: Asked, haystack: Haystack, spans: Sequence[Span]) -> float:
    """The share of the facts needed that stand wholly in these spans."""
    shown = tokens_of(spans)
    found = [
        shown.issuperset(range(fact.start, fact.end))
        for fact in (haystack.facts[i] for i in asked.facts)
    ]
    return sum(found) / len(found)
