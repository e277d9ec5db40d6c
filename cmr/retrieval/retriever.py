"""A search as it is attached to a store: a strategy, the choice of passages, and a cache."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from cmr.config import RetrievalConfig
from cmr.config import checks as check
from cmr.retrieval.ask import Ask, Searched, Strategy, tell
from cmr.retrieval.cache import RetrievalCache, key_of, version_of
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.choice import Choice
from cmr.retrieval.own_slots import OwnSlots, own_slots
from cmr.retrieval.rolling_query import RollingQuery
from cmr.retrieval.selection import Selector
from cmr.retrieval.strategies.asked import Asked
from cmr.retrieval.vocabulary import Vocabulary

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


class Retriever:
    """Chooses passages by the strategy of the settings.

    With a vocabulary the default search takes what is asked in parts, see `strategies.asked`.

    Attributes:
        config: the settings.
        strategy: scores passages; None where the kernels do it all.
        cache: keeps answers to questions that are asked again.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        calibration: Calibration | None = None,
        cache: RetrievalCache | None = None,
        made: dict[Hashable, Strategy] | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.config, self._calibration, self._vocabulary = config, calibration, vocabulary
        self.cache = RetrievalCache(config.cache_size or 0) if cache is None else cache
        self._selector = Selector(config, calibration, vocabulary)
        # By their settings. All retrievers of one memory share them, as some strategies keep what
        # they have learnt of the store.
        self._made: dict[Hashable, Strategy] = {} if made is None else made
        self.strategy = self._strategy()

    def _strategy(self) -> Strategy | None:
        config = self.config
        if config.strategy == "maxsim":
            known = self._vocabulary
            return None if known is None else Asked(known, self._calibration)
        # Here, so that the default search does not load the other strategies.
        from cmr.retrieval.strategies.registry import Parts, make_strategy

        key = config.strategy, config.criteria_weights, config.context_heads
        if key not in self._made:
            parts = Parts(config, self._calibration, vocabulary=self._vocabulary)
            self._made[key] = make_strategy(config.strategy, parts)
        return self._made[key]

    def forget(self, store: Searched) -> None:
        """Drop what is kept of blocks that the store holds no more."""
        self.cache.forget()
        tell(self._made.values(), "follow", store)

    def close(self) -> None:
        """End what strategies do in the background."""
        tell(self._made.values(), "close")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose attention queries the strategy looks at; none of them behind the index's."""
        if self._calibration is None or self.strategy is None:
            return ()
        from cmr.retrieval.strategies.registry import LOOK_AT_HEADS

        if self.config.strategy not in LOOK_AT_HEADS:
            return ()
        return tuple(sorted({layer for layer, _ in self._calibration.heads}))

    def with_settings(self, **settings: Any) -> Retriever:
        """One with other settings, all of them of `PER_REQUEST`, and the same cache."""
        for name in settings:
            check.choice("a setting of a request", name, PER_REQUEST)
        config = replace(self.config, **settings)
        return Retriever(config, self._calibration, self.cache, self._made, self._vocabulary)

    def search(self, ask: Ask, store: Searched) -> Choice:
        """Choose passages for each row from its own session's blocks.

        The certainty of the choice is the best score over what is expected of the best passage when
        nothing fits (about 1 then, 1.3 to 2 for a question that a passage answers), and 0 where the
        row has no passage. Rows below `threshold` read nothing.
        """
        if not self.config.blocks:
            return Choice.nothing(len(ask.sessions), store.device)
        if not self.cache.size:
            return self._search(ask, store)
        # The version is that before the search: an answer of a store that changed meanwhile is
        # dropped at its next use. `located` changes the rule, though no tensor of the question.
        key, version = key_of(ask, self.config, ask.located), version_of(store)
        known = self.cache.get(key, version)
        if known is not None:
            return Choice(*known)
        found = self._search(ask, store)
        self.cache.put(key, version, found)
        return found

    @property
    def narrows(self) -> bool:
        """Whether a search may look at a part of the store, that of the sessions that ask."""
        # Strategies beside the default one may keep what they learnt of the store, slot by slot.
        return self.config.strategy == "maxsim"

    def search_again(self, query: RollingQuery, store: Searched) -> Choice:
        """Choose passages for a query that goes on; the next search may write over the choice."""
        space = query.space
        if isinstance(space, OwnSlots):
            return query.settle(space.widened(self._found(query.ask(), space)))
        if self.strategy is None:
            ask, room = query.for_kernels(self._selector.candidates, self._selector.run)
            return query.settle(self._selector.fused(ask, store, room, query.choice))
        return query.settle(self._found(query.ask(), store, query.choice))

    def _search(self, ask: Ask, store: Searched) -> Choice:
        own = own_slots(ask.sessions, store) if self.narrows and ask.known is None else None
        return self._found(ask, store) if own is None else own.widened(self._found(ask, own))

    def _found(self, ask: Ask, store: Searched, out: Choice | None = None) -> Choice:
        strategy, selector = self.strategy, self._selector
        if strategy is None:
            return selector.fused(ask, store)
        settings = getattr(strategy, "settings", None)
        if settings is not None:
            selector = Selector(settings(ask, self.config), self._calibration, self._vocabulary)
        found = strategy.score(ask, store)
        wanted = [len(ask.sessions), store.high_water]
        if list(found.passages.shape) != wanted:
            raise ValueError(
                f"{type(strategy).__name__}: scores of shape {wanted} expected, "
                f"got {list(found.passages.shape)}"
            )
        return selector.by_scores(ask, store, found, out)
