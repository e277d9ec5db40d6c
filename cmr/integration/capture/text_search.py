"""The search of a text that goes on: what it asked, what it recalls, and when it is due again."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch

from cmr.config import RetrievalConfig
from cmr.integration.reweave.recall import Recall
from cmr.retrieval import Ask, RollingQuery


class TextSearch:
    """The search of one text, which goes on from forward to forward with its cache.

    Attributes:
        sessions: session number of each row at the last search.
        recall: what the rows read at present.
        settings: of the search that gave it; None: nothing was searched.
        asked_for: the request of a `generate` whose prompt has asked; None: none has.
        steps: tokens since the last prompt asked, or since `forget`.
        period: how many times `refresh` of them had passed at the last search.
        query: the newest tokens as the last search of a decoding step left them.
        unasked: tokens that came since then.
        located: whether the last prompt was a question in a known chat template.
        question: that question with its parts, where the tokens are known; None: neither is.
        asked_at: tokens that the cache has seen with the last prompt that asked.
        aside: what the layers look at less among that prompt's tokens, see `aside_of`; None:
            nothing.
        held: the state of the store, `(changes, forgotten)`, in which the sessions were last found
            to have something to recall.
    """

    def __init__(self) -> None:
        self.sessions: list[int] = []
        self.recall: Recall | None = None
        self.settings: RetrievalConfig | None = None
        self.asked_for: weakref.ref[object] | None = None
        self.steps = self.period = self.unasked = 0
        self.query: RollingQuery | None = None
        self.located = False
        self.question: Ask | None = None
        self.asked_at = 0
        self.aside: torch.Tensor | None = None
        self.held: tuple[int, int] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TextSearch:
        """That of a copied cache. Tensors that nobody changes in place are shared."""
        # All rows, in their order: `select` makes new tensors of what a search writes in place.
        other = copy.copy(self)
        if self.recall is not None:
            other.recall = self.recall.select(torch.arange(len(self.recall.bias)))
        if self.query is not None:
            other.query = self.query.select(torch.arange(len(self.query.mask)))
        return other

    def forget(self) -> None:
        """Let go of what was recalled, and search anew at the next step."""
        # One step back, so that the next one begins another period: it searches.
        self.recall = self.query = self.question = self.aside = None
        self.steps = self.period = -1

    def drop(self) -> None:
        """Let go of what was recalled, and search when it is due, not before."""
        self.recall = self.query = self.question = self.aside = None

    def use(self, settings: RetrievalConfig) -> None:
        """Search with these settings from now on: what was found with others is forgotten."""
        if self.settings is settings or self.settings == settings:
            return
        if self.settings is not None:
            self.forget()
        self.settings = settings

    def due(self, tokens: int, refresh: int) -> bool:
        """Count new tokens of a text that goes on; whether a search falls due in front of them."""
        period = (self.steps + 1) // refresh  # of the first of them
        due, self.period = period != self.period, period
        self.steps += tokens
        return due

    def crop(self, tokens: int) -> None:
        """Take back the last tokens, and so many decoding steps with them."""
        # A query that holds one of them is dropped; the next search makes it anew.
        self.steps -= min(tokens, max(0, self.steps))
        self.unasked -= tokens
        if self.unasked < 0:
            self.query, self.unasked = None, 0

    def select(self, rows: torch.Tensor) -> None:
        """Become the search of these rows of the batch, in any order and as often as wanted."""
        self._follow(rows)
        if self.query is not None:
            self.query = self.query.select(rows)

    def reorder(self, rows: torch.Tensor) -> None:
        """Rows follow their beams; the query keeps its tensors, which a search reads in place."""
        self._follow(rows)
        if self.query is not None:
            self.query.reorder(rows)

    def _follow(self, rows: torch.Tensor) -> None:
        """Let what was asked and recalled be that of these rows."""
        self.held = None
        if self.question is not None:
            self.question = self.question.of_rows(rows)
        if self.aside is not None:
            self.aside = self.aside.index_select(0, rows.to(self.aside.device))
        if self.recall is not None:
            self.recall = self.recall.select(rows)
