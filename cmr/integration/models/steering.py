"""What steers a model class while it runs: search, relevance, reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from cmr.config import CMRConfig
from cmr.config import checks as check
from cmr.integration.change import RECONSTRUCTION
from cmr.integration.models.feeder import Scorer
from cmr.integration.models.saved import SavedModel
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.relevance import RelevanceScorer
from cmr.reconstruction.blender import ContextBlender
from cmr.reconstruction.integrator import ReconstructionIntegrator
from cmr.reconstruction.reconstructor import LayeredStateReconstructor
from cmr.reconstruction.result import Reconstruction
from cmr.retrieval.entries.advanced import AdvancedMemoryRetriever
from cmr.retrieval.entries.context import RetrievalContext

USUAL: dict[str, Any] = {
    "reconstruction_method": "hierarchical",
    "max_memory_tokens": 128,
    "compression_ratio": 0.6,
}
"""Reconstruction where it is asked for and nothing is configured."""
WEIGHT = 0.3
"""Weight of memory states in blends where `memory_weight` is 'auto'."""


class Steering(SavedModel):
    """Methods that change how is retrieved, scored and reconstructed: in memory and buffer alike.

    Whatever is refused changes nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: CMRConfig | Mapping[str, Any] | None = None,
        *,
        output_hidden_size: int | None = None,
        tokenizer: Any = None,
        memory_buffer: LayeredMemoryBuffer | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(
            model,
            settings,
            output_hidden_size=output_hidden_size,
            tokenizer=tokenizer,
            memory_buffer=memory_buffer,
            scorer=scorer,
        )
        config, hidden = self.memory_config, self.memory._core.adapter.hidden
        reweave = config.reweave
        given = {name: getattr(reweave, name) for name in RECONSTRUCTION}
        self.reconstruction_enabled = any(value is not None for value in given.values())
        self._reconstruction = given if self.reconstruction_enabled else dict(USUAL)
        self.retriever = AdvancedMemoryRetriever(hidden, self.memory_buffer, config.retrieval)
        self.reconstructor = LayeredStateReconstructor(
            hidden,
            self._reconstruction["reconstruction_method"] or "attention",
            self._reconstruction["max_memory_tokens"],
            self._reconstruction["compression_ratio"],
            model=model,
        )
        weight = WEIGHT if isinstance(reweave.memory_weight, str) else reweave.memory_weight
        self.integrator = ReconstructionIntegrator(hidden, reweave.method, weight)
        self.blender = ContextBlender(
            hidden,
            None if config.retrieval.criteria_weights is None
            else dict(config.retrieval.criteria_weights),
            max_memory_tokens=self._reconstruction["max_memory_tokens"],
        )  # fmt: skip

    # -- retrieval -------------------------------------------------------------------------------

    def set_retrieval_strategy(self, strategy: str) -> None:
        """Find by another strategy from now on: blocks of the memory and entries of the buffer.

        Raises:
            ConfigError: there is no such strategy; the message names the nearest one.
        """
        self.memory.change(strategy=strategy)
        self.retriever.config = replace(
            self.retriever.config, strategy=self.memory_config.retrieval.strategy
        )

    def get_retrieval_stats(self) -> dict[str, Any]:
        """What was searched for, and what the last call recalled, as plain data.

        Returns:
            `strategy`; `searches` and `recalls` so far; `recalled`: for each row of the last call
            the passages that it could read, best first: `start`, `end`, `score`, `gate`,
            `session`, and `text` where a tokenizer is known; `cache` of the search; `buffer`:
            `AdvancedMemoryRetriever.get_retrieval_stats`.
        """
        stats = self.memory.stats()
        names = ("start", "end", "score", "gate", "session", "text")
        return {
            "strategy": stats["strategy"],
            "searches": stats["searches"],
            "recalls": stats["recalls"],
            "recalled": [
                [{name: getattr(passage, name) for name in names} for passage in row]
                for row in self.memory.recalled
            ],
            "cache": stats["cache"],
            "buffer": self.retriever.get_retrieval_stats(),
        }

    # -- relevance -------------------------------------------------------------------------------

    def update_relevance_threshold(self, threshold: float | None) -> None:
        """Let what is of lower relevance leave before all else; None: nothing does.

        It holds for blocks and entries when room is made next.

        Raises:
            ConfigError: it is not in [0, 1].
        """
        self.memory.change(relevance_threshold=threshold)
        self.memory_buffer.set_relevance_threshold(threshold)
        self._buffer_settings = {**self._buffer_settings, "relevance_threshold": threshold}

    def update_scoring_method(self, method: str) -> None:
        """Score what is stored from now on by another method; relevance given before is kept.

        Raises:
            ConfigError: there is no such method; the message names the nearest one.
        """
        self.memory.change(scoring_method=method)
        hidden = self.memory._core.adapter.hidden
        self.scorer = self._feeder.scorer = self._passes.scorer = RelevanceScorer(hidden, method)

    def optimize_memory(self) -> dict[str, int]:
        """Tidy up: what expired goes, what is stored twice is merged, what is used rises a tier.

        Returns:
            `expired`, `merged` and `risen` blocks of the memory, see `Memory.consolidate`;
            `merged_entries` of the buffer: of the same token and state in a session the newest
            stays; `answers`: answers of former searches that were dropped.
        """
        report = self.memory.consolidate()
        return {
            "expired": report.expired,
            "merged": report.merged,
            "risen": report.risen,
            "merged_entries": self.memory_buffer.drop_duplicates(self.target_layers),
            "answers": self.retriever.clear_cache(),
        }

    # -- reconstruction --------------------------------------------------------------------------

    def enable_reconstruction(self) -> None:
        """Let layers read what is reconstructed of what was recalled.

        By what was configured; where nothing was: 'hierarchical', 128 tokens and 60 % at most.
        """
        self.memory.change(**self._reconstruction)
        self.reconstruction_enabled = True

    def disable_reconstruction(self) -> None:
        """Let layers read all that is recalled, as it is stored."""
        self.memory.change(**dict.fromkeys(RECONSTRUCTION))
        self.reconstruction_enabled = False

    def set_reconstruction_method(self, method: str) -> None:
        """Reconstruct by another method, where reconstruction is enabled and in `reconstructor`.

        Raises:
            ConfigError: there is no such method; the message names the nearest one.
        """
        if method is None:
            raise check.refuse("reconstruction_method", method, "a method's name")
        wanted = {**self._reconstruction, "reconstruction_method": method}
        if self.reconstruction_enabled:
            self.memory.change(**wanted)
        self.reconstructor.method = method
        self._reconstruction = wanted

    def reconstruct(self, context: RetrievalContext, strategy: str | None = None) -> Reconstruction:
        """Entries of the buffer that help, as states to read: retrieved, then reconstructed.

        `integrator` blends them into states, `blender` joins several of them.

        Args:
            context: who asks, and for what.
            strategy: of the retrieval; None: that of the settings.

        Raises:
            ConfigError, TypeError, ValueError, ModelMismatchError: as
                `AdvancedMemoryRetriever.retrieve_memories`.
        """
        return self.reconstructor.reconstruct(
            self.retriever.retrieve_memories(context, strategy),
            context.current_hidden_states,
            layer_idx=context.current_layer_idx,
            attention_mask=context.attention_mask,
        )

    def _set_buffer(self, settings: dict[str, Any]) -> None:
        super()._set_buffer(settings)
        hidden = self.memory._core.adapter.hidden
        self.retriever = AdvancedMemoryRetriever(
            hidden, self.memory_buffer, self.memory_config.retrieval
        )
