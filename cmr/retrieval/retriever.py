"""A search as it is attached to a store: a strategy, the choice of passages, and a cache."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch

from cmr.config import RetrievalConfig
from cmr.config import checks as check
from cmr.kernels.reference._topk import topk_lowest_slot
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import at_peaks, certainty_of
from cmr.retrieval.ask import (
    Ask,
    Closing,
    Following,
    Searched,
    Settled,
    Strategy,
    columns_of,
    visible,
)
from cmr.retrieval.cache import RetrievalCache, key_of, version_of
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.choice import Choice
from cmr.retrieval.rolling_query import RollingQuery
from cmr.retrieval.rules import rule_for
from cmr.retrieval.selection import CANDIDATES, Best, cover, near, values_of
from cmr.retrieval.strategies.criteria import diversify
from cmr.retrieval.strategies.maxsim import MaxSimRetriever

PER_REQUEST = (
    "strategy",
    "blocks",
    "neighbours",
    "gain",
    "ratio",
    "threshold",
    "similarity_threshold",
    "criteria_weights",
    "context_heads",
)
"""Settings that may differ from one request to the next; the others shape the store."""

LOOK_AT_HEADS = ("contextual_relevance", "hybrid_ensemble", "task_specific")
"""Strategies that look at attention queries, where the calibration names heads."""


class Retriever:
    """Chooses passages by the strategy of the settings.

    Args:
        config: the settings.
        calibration: what was measured for the model; None: nothing was.
        cache: keeps answers; None: a new one of the size that the settings give.
        made: strategies that were made before, by their settings.

    Attributes:
        config: as given.
        strategy: scores passages; None where the fused search does it all.
        cache: keeps answers to questions that are asked again.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        calibration: Calibration | None = None,
        cache: RetrievalCache | None = None,
        made: dict[Hashable, Strategy] | None = None,
    ) -> None:
        self.config, self._calibration = config, calibration
        self.cache = RetrievalCache(config.cache_size or 0) if cache is None else cache
        self._fused = MaxSimRetriever(config, calibration)
        self._made: dict[Hashable, Strategy] = {} if made is None else made
        self.strategy = self._strategy()

    def _strategy(self) -> Strategy | None:
        """That of the settings, made once: some keep what they have learnt of the store."""
        if self.config.strategy == "maxsim":
            return None
        from cmr.retrieval.strategies.registry import Parts, make_strategy

        config = self.config
        key = config.strategy, config.criteria_weights, config.context_heads
        if key not in self._made:
            self._made[key] = make_strategy(config.strategy, Parts(config, self._calibration))
        return self._made[key]

    def forget(self, store: Searched) -> None:
        """Drop what is kept of blocks that the store holds no more."""
        self.cache.forget()
        for strategy in self._made.values():
            if isinstance(strategy, Following):
                strategy.follow(store)

    def close(self) -> None:
        """End what strategies do in the background."""
        for strategy in self._made.values():
            if isinstance(strategy, Closing):
                strategy.close()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose attention queries the strategy looks at; none of them behind the index's."""
        if self._calibration is None or self.config.strategy not in LOOK_AT_HEADS:
            return ()
        return tuple(sorted({layer for layer, _ in self._calibration.heads}))

    def with_settings(self, **settings: Any) -> Retriever:
        """One with other settings and the same cache.

        Raises:
            ConfigError: a setting is unknown, not among `PER_REQUEST`, or out of its range.
        """
        for name in settings:
            check.choice("a setting of a request", name, PER_REQUEST)
        config = replace(self.config, **settings)
        return Retriever(config, self._calibration, self.cache, self._made)

    def search(self, ask: Ask, store: Searched) -> Choice:
        """Choose passages for each row from its own session's blocks.

        Args:
            ask: what the rows look for.
            store: where.

        Returns:
            The choice; see `MaxSimRetriever.search`.
        """
        if not self.config.blocks:
            return Choice.nothing(len(ask.sessions), store.device)
        if not self.cache.size:
            return self._search(ask, store)
        key, version = key_of(ask, self.config, ask.located), version_of(store)
        known = self.cache.get(key, version)
        if known is not None:
            return Choice(*known)
        found = self._search(ask, store)
        self.cache.put(key, version, (found.table, found.stamps, found.scores, found.certainty))
        return found

    def search_again(self, query: RollingQuery, store: Searched) -> Choice:
        """Choose passages for a query that goes on; the next search may write over the choice."""
        if self.strategy is None:
            return self._fused.search_again(query, store)
        return query.settle(self._chosen(self.strategy, query.ask(), store))

    def _search(self, ask: Ask, store: Searched) -> Choice:
        if self.strategy is None:
            return self._fused.search(ask, store)
        return self._chosen(self.strategy, ask, store)

    def _chosen(self, strategy: Strategy, ask: Ask, store: Searched) -> Choice:
        """Passages by a strategy's scores; what a row may not see is left out whatever they are."""
        config = self.config
        if isinstance(strategy, Settled):
            config = strategy.settings(ask, config)
        found = strategy.score(ask, store)
        seen, columns = visible(ask, store), columns_of(store, store.high_water)
        if found.passages.shape != seen.shape:
            raise ValueError(
                f"{type(strategy).__name__}: scores of shape {list(seen.shape)} expected, "
                f"got {list(found.passages.shape)}"
            )
        passages = found.passages.float().masked_fill(~seen, NEG_INF)
        line = passages if found.line is None else found.line.masked_fill(~seen, NEG_INF)
        rule, certainty = rule_for(ask, config, self._calibration), found.certainty
        if certainty is None:
            certainty = certainty_of(line, seen.sum(-1), rule)
        k = max(CANDIDATES, config.blocks)
        ranked = at_peaks(line, passages, columns)
        if found.profiles is None:
            scores, starts = topk_lowest_slot(ranked, k)
        else:
            scores, starts = diversify(ranked, found.profiles, found.diversity, k)

        def similarity(best: Best) -> torch.Tensor:
            """Theirs by the line, where they are ranked by something else."""
            if found.line is None or not line.shape[1]:
                return best.scores
            return line.gather(1, best.starts.clamp(min=0))

        best = Best(scores, starts, certainty)
        fits = similarity(best) >= 0
        if found.line is not None:
            fits[:, 0] = True
        best = best.only(fits & (certainty >= rule.threshold)[:, None])
        least = config.similarity_threshold
        if least is not None:
            best = near(ask.maxima(store), ask.mask, columns.successor, best, least)
        if found.explained is None:
            maxima = ask.maxima(store)
            values = values_of(maxima, ask.mask, columns.successor, seen, rule, best.starts)
        else:
            values = found.explained(best.starts)
        own = similarity(best)
        close = (own >= config.ratio * own[:, :1]) & (own > 0)
        return cover(*values, columns, rule, best, close, config.blocks, config.gain)
