"""Retrieval of entries from a `LayeredMemoryBuffer`, by any strategy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from cmr.config import STRATEGY_SYNONYMS, RetrievalConfig, known_strategies, resolve
from cmr.config import checks as check
from cmr.errors import ModelMismatchError
from cmr.kernels.reference.attention import NEG_INF
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.entry import MemoryEntry
from cmr.retrieval.ask import Ask, Strategy, visible
from cmr.retrieval.cache import RetrievalCache, key_of
from cmr.retrieval.entries.buffer_entries import BufferEntries
from cmr.retrieval.entries.context import RetrievalContext
from cmr.retrieval.selection import ranked
from cmr.retrieval.strategies.criteria import MultiCriteriaRanker
from cmr.retrieval.strategies.hierarchical import Hierarchical
from cmr.retrieval.strategies.registry import Parts, StrategyMaker, make_strategy
from cmr.retrieval.strategies.semantic import SemanticMemoryMatcher


class AdvancedMemoryRetriever:
    """Finds the entries of a sequence that help most, by the strategy that is asked for.

    Only entries of the context's own sequence and layer are ever found, and none whose largest
    cosine with a token that asks is below `similarity_threshold`. Answers are kept, see
    `RetrievalCache`, until anything in the buffer changes. What is found counts as used.

    Args:
        hidden_size: width of the states, 1 or more.
        memory_buffer: where the entries are.
        retrieval_config: a `RetrievalConfig` or a dict of its fields: `strategy`,
            `similarity_threshold`, `criteria_weights`, `cache_size` (None: no cache),
            `context_heads` and `max_clusters` are used, the others are the attached memory's.
            None: the defaults.
        scorer: the strategy for 'contextual_relevance', in place of the one that would be made.

    Attributes:
        config: the settings.
        semantic_matcher: compares states.
        multi_criteria_ranker: weighs criteria.
        retrieval_cache: keeps answers.
        contextual_scorer: the strategy of 'contextual_relevance'.
        memory_hierarchy: the strategy of 'hierarchical', with a `MemoryHierarchy` for each layer.

    Raises:
        ConfigError: a setting is unknown or out of its range.
        TypeError: the buffer is none.
    """

    def __init__(
        self,
        hidden_size: int,
        memory_buffer: LayeredMemoryBuffer,
        retrieval_config: Mapping[str, Any] | RetrievalConfig | None = None,
        scorer: Strategy | None = None,
    ) -> None:
        self.hidden_size = check.integer("hidden_size", hidden_size, 1)
        if not isinstance(memory_buffer, LayeredMemoryBuffer):
            what = type(memory_buffer).__name__
            raise TypeError(f"memory_buffer: a LayeredMemoryBuffer expected, got {what}")
        self.memory_buffer, self.config = memory_buffer, _settings(retrieval_config)
        self.semantic_matcher = SemanticMemoryMatcher(hidden_size, self.config.similarity_threshold)
        self.multi_criteria_ranker = MultiCriteriaRanker(self.config.criteria_weights)
        self.retrieval_cache = RetrievalCache(self.config.cache_size or 0)
        self._own: dict[str, StrategyMaker] = {}
        if scorer is not None:
            self._own["contextual_relevance"] = lambda parts: scorer
        self._parts = Parts(self.config, matcher=self.semantic_matcher, own=self._own)
        # Made when they are first asked for: not every machine has what each of them needs.
        self._made: dict[str, Strategy] = {}
        self._entries = BufferEntries(memory_buffer)
        self._counted: Counter[str] = Counter(retrievals=0, hits=0, retrieved=0)
        self._by_strategy: Counter[str] = Counter()
        self._seconds = 0.0

    @property
    def contextual_scorer(self) -> Strategy:
        """The strategy of 'contextual_relevance'."""
        return self.strategy("contextual_relevance")

    @property
    def memory_hierarchy(self) -> Hierarchical:
        """The strategy of 'hierarchical'; a TypeError where another was registered in its place."""
        found = self.strategy("hierarchical")
        if not isinstance(found, Hierarchical):
            raise TypeError(f"hierarchical: a Hierarchical expected, got {type(found).__name__}")
        return found

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies that can be asked for, without synonyms."""
        return tuple(dict.fromkeys((*known_strategies(), *self._own)))

    def register(self, name: str, maker: StrategyMaker) -> None:
        """Add a strategy, made when it is asked for first, or put another one in its place."""
        with self.memory_buffer.lock:
            self._own[name] = maker
            # Answers and the strategy made before are those of the old maker.
            self._made.pop(name, None)
            self.retrieval_cache.forget()

    def strategy(self, name: str) -> Strategy:
        """The strategy of a name, made when it is asked for first."""
        name = self._known(name)
        if name not in self._made:
            self._made[name] = make_strategy(name, self._parts)
        return self._made[name]

    def _known(self, name: str) -> str:
        """The name without synonyms, if there is such a strategy."""
        check.choice("strategy", name, (*self.strategies, *STRATEGY_SYNONYMS))
        return STRATEGY_SYNONYMS.get(name, name)

    def retrieve_memories(
        self, context: RetrievalContext, strategy: str | None = None
    ) -> list[MemoryEntry]:
        """The entries that help most, best first, `retrieval_budget` at most.

        Args:
            context: who asks, and for what.
            strategy: a name of `strategies` or a synonym; None: that of the settings.

        Returns:
            Copies of entries; of equal ones the lower slot first. None where the budget is 0, the
            layer is empty or no token asks.

        Raises:
            ConfigError: the strategy is unknown, or a value of the context is out of its range.
            TypeError, ValueError: states or mask are not as `RetrievalContext` says.
            ModelMismatchError: the states are not `hidden_size` wide, or the layer's are not.
        """
        if not isinstance(context, RetrievalContext):
            what = type(context).__name__
            raise TypeError(f"context: a RetrievalContext expected, got {what}")
        name = self._known(self.config.strategy if strategy is None else strategy)
        budget = check.integer("retrieval_budget", context.retrieval_budget, 0)
        number = check.integer("current_layer_idx", context.current_layer_idx, 0)
        # Held from the search to the copies: a slot may get another entry.
        with self.memory_buffer.lock:
            began = time.perf_counter()
            # Checked and counted where there is nothing to find, too.
            store = self.memory_buffer.layer(number)
            device = torch.device("cpu") if store is None else store.device
            ask = context.ask(self.hidden_size, device)
            if store is not None and store.hidden != self.hidden_size:
                raise ModelMismatchError(
                    f"layer {number}: hidden size {self.hidden_size} expected, got {store.hidden}"
                )
            entries: list[MemoryEntry] = []
            if store is not None and store.held and budget and ask.states.shape[1]:
                entries = self.memory_buffer.take(number, self._search(ask, number, budget, name))
            self._counted["retrievals"] += 1
            self._counted["hits"] += bool(entries)
            self._counted["retrieved"] += len(entries)
            self._by_strategy[name] += 1
            self._seconds += time.perf_counter() - began
            return entries

    def get_retrieval_stats(self) -> dict[str, Any]:
        """What happened so far, as plain data.

        `retrievals`, `hits` (those that found something), `hit_rate` (None before the first),
        `retrieved` entries, `by_strategy` (name to retrievals), `seconds` spent, `cache` (see
        `RetrievalCache.stats`) and `settings`.
        """
        with self.memory_buffer.lock:
            self.retrieval_cache.hold(self.memory_buffer.version)
            retrievals = self._counted["retrievals"]
            return {
                **self._counted,
                "hit_rate": self._counted["hits"] / retrievals if retrievals else None,
                "by_strategy": dict(self._by_strategy),
                "seconds": self._seconds,
                "cache": self.retrieval_cache.stats(),
                "settings": asdict(self.config),
            }

    def clear_cache(self) -> int:
        """Drop all answers that are kept; returns how many there were."""
        return self.retrieval_cache.forget()

    def _search(self, ask: Ask, layer: int, budget: int, name: str) -> torch.Tensor:
        """Slots `[found]` int64 on the CPU, best first."""
        cache, version = self.retrieval_cache, self.memory_buffer.version
        # A key is a digest of all that asks; without a cache nobody would use it.
        key = key_of(ask, layer, budget, name) if cache.size else b""
        known = cache.get(key, version)
        if known is not None:
            return known[0]
        view, scorer = self._entries.layer(layer), self.strategy(name)
        assert view is not None
        # The threshold and most strategies look at the same cosines: they are computed once.
        maxima = ask.maxima(view)
        ask = replace(ask, known=maxima)
        fits = self.semantic_matcher.of_maxima(maxima, ask.mask) > NEG_INF
        found = scorer.score(ask, view)
        if found.passages.shape != fits.shape:
            raise ValueError(
                f"scores: {list(fits.shape)} expected of {type(scorer).__name__}, "
                f"got {list(found.passages.shape)}"
            )
        # Whatever a strategy says, a row finds only what it may see and what fits.
        base = found.passages.masked_fill(~(fits & visible(ask, view)), NEG_INF)
        k = min(budget, view.high_water)
        slots = ranked(base, k, found.profiles, found.diversity).slots[0]
        slots = slots[slots >= 0].cpu()
        cache.put(key, version, (slots,))
        return slots


def _settings(given: Mapping[str, Any] | RetrievalConfig | None) -> RetrievalConfig:
    if given is None:
        return RetrievalConfig()
    if isinstance(given, RetrievalConfig):
        return given
    found = resolve(given, {"retrieval": RetrievalConfig})
    if "" in found:
        raise check.refuse("retrieval_config", "window", "fields of RetrievalConfig")
    return RetrievalConfig(**found.get("retrieval", {}))
