"""`FullCMRModel`: a decoder with everything that the memory can do."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from cmr.config import checks as check
from cmr.integration.change import RECONSTRUCTION
from cmr.integration.consolidation import Between, no_wait
from cmr.integration.models.backbone.backbones import BackboneAdapter
from cmr.integration.models.memory_model import Given, MemoryModel
from cmr.integration.models.outputs import CMROutput
from cmr.integration.models.passes import Sessions
from cmr.memory.entry import MemoryEntry
from cmr.memory.relevance import RelevanceScorer
from cmr.monitoring.monitor import CMRPerformanceMonitor
from cmr.optimization.optimizer import CMRPerformanceOptimizer
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
PASSAGE = ("start", "end", "score", "gate", "session", "text")
"""What is told of a passage; `text` is None where no tokenizer is known."""


class FullCMRModel(MemoryModel):
    """A decoder that remembers, with retrieval, reconstruction and all that steers them.

    What steers it changes memory and buffer alike; whatever is refused changes nothing. Where
    `optimization_config` turns something on, it steers itself while its hooks are registered.

    Args:
        base_config: of the decoder, as `source` of `MemoryModel`.
        cmr_config: `settings` of `MemoryModel`.
        device: as there.
        adapter: as there.
        output_hidden_size: as there. `logits` and `hidden_states` are always the decoder's.
        **options: the others of `MemoryModel`.

    Attributes:
        retriever: finds entries of `memory_buffer`; an `AdvancedMemoryRetriever`.
        reconstructor: makes what it found fewer; a `LayeredStateReconstructor`.
        integrator: blends that into states; a `ReconstructionIntegrator`.
        blender: joins several of them; a `ContextBlender`.
        reconstruction_enabled: whether layers read what is reconstructed of what was recalled.
        optimizer: steers the memory, a `CMRPerformanceOptimizer`; None where nothing is on, or
            while no hooks are registered.
    """

    SCORING = "attention_based"
    LOOKS_AT = (
        "context_heads",
        "criteria_weights",
        "max_clusters",
        "optimization",
        "reconstruction_method",
    )
    optimizer: CMRPerformanceOptimizer | None = None

    def __init__(
        self,
        base_config: Any,
        cmr_config: Given = None,
        device: str | torch.device | None = None,
        adapter: BackboneAdapter | None = None,
        *,
        output_hidden_size: int | None = 256,
        **options: Any,
    ) -> None:
        options |= {"output_hidden_size": output_hidden_size, "adapter": adapter}
        super().__init__(base_config, cmr_config, device=device, **options)
        config, hidden = self.memory_config, self._hidden
        reweave, criteria = config.reweave, config.retrieval.criteria_weights
        given = {name: getattr(reweave, name) for name in RECONSTRUCTION}
        # On where any of its settings was given; else `enable_reconstruction` takes `USUAL`.
        self.reconstruction_enabled = any(value is not None for value in given.values())
        self._reconstruction = given if self.reconstruction_enabled else dict(USUAL)
        method, tokens, ratio = (self._reconstruction[name] for name in RECONSTRUCTION)
        self.retriever = AdvancedMemoryRetriever(hidden, self.memory_buffer, config.retrieval)
        self.reconstructor = LayeredStateReconstructor(
            hidden, method or "attention", tokens, ratio, model=self.model
        )
        # "auto" follows the certainty of a search, which a blend of given states does not have.
        weight = WEIGHT if isinstance(reweave.memory_weight, str) else reweave.memory_weight
        self.integrator = ReconstructionIntegrator(hidden, reweave.method, weight)
        criteria_weights = None if criteria is None else dict(criteria)
        self.blender = ContextBlender(hidden, criteria_weights, max_memory_tokens=tokens)

    @cached_property
    def monitor(self) -> CMRPerformanceMonitor:
        """Watches it from the first use of this on, in the place of `performance`."""
        return CMRPerformanceMonitor(self)

    def register_memory_hooks(self) -> None:
        """Put the hooks on the decoder, and steer where that is on; again is no harm."""
        super().register_memory_hooks()
        on = self._given.config.optimization
        if self.optimizer is None and any(vars(on).values()):
            self.optimizer = CMRPerformanceOptimizer(self, on)

    def cleanup_hooks(self) -> None:
        """Take all hooks away and steer no more; what is stored stays."""
        optimizer, self.optimizer = self.optimizer, None
        if optimizer is not None:
            optimizer.close()
        super().cleanup_hooks()

    # The specification's order of arguments, which is not that of the other classes.
    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_memory_info: bool = False,
        task_type: str | None = None,
        use_memory: bool | None = None,
        *,
        sessions: Sessions = None,
        **inputs: Any,
    ) -> CMROutput:
        """A forward that recalls first and remembers afterwards; see `MemoryModel.forward`.

        With `return_memory_info` it gives `performance_stats` and `retrieval_stats`, and all there
        is in `memory_stats`, and waits for the device.
        """
        output = super().forward(
            input_ids, attention_mask, use_memory, sessions=sessions, task_type=task_type, **inputs
        )
        if return_memory_info:
            output.memory_stats = self.get_memory_stats()
            output.performance_stats = self.performance.stats()
            output.retrieval_stats = self.get_retrieval_stats()
        return output

    # -- retrieval -------------------------------------------------------------------------------

    def set_retrieval_strategy(self, strategy: str) -> None:
        """Find by another strategy from now on: blocks of the memory and entries of the buffer.

        `ConfigError`: there is no such strategy; the message names the nearest one.
        """
        self.memory.change(strategy=strategy)
        # The memory's settings have the name without synonyms.
        own = self.memory_config.retrieval.strategy
        self.retriever.config = replace(self.retriever.config, strategy=own)

    def get_retrieval_stats(self) -> dict[str, Any]:
        """What was searched for, and what the last call recalled, as plain data.

        Returns:
            `strategy`, `searches`, `recalls` and `cache` as in `Memory.stats`; `recalled`: for each
            row of the last call the passages that it could read, best first, with the fields named
            `PASSAGE`; `buffer`: `AdvancedMemoryRetriever.get_retrieval_stats`.
        """
        stats = self.memory.stats()
        recalled = [
            [{name: getattr(passage, name) for name in PASSAGE} for passage in row]
            for row in self.memory.recalled
        ]
        return {
            **{name: stats[name] for name in ("strategy", "searches", "recalls", "cache")},
            "recalled": recalled,
            "buffer": self.retriever.get_retrieval_stats(),
        }

    # -- relevance -------------------------------------------------------------------------------

    def update_relevance_threshold(self, threshold: float | None) -> None:
        """Let what is of lower relevance leave before all else, when room is made next.

        It holds for blocks and entries; None: nothing does. `ConfigError`: it is not in [0, 1].
        """
        self.memory.change(relevance_threshold=threshold)
        self.memory_buffer.set_relevance_threshold(threshold)

    def update_scoring_method(self, method: str) -> None:
        """Score what is stored from now on by another method; relevance given before is kept.

        `ConfigError`: there is no such method; the message names the nearest one.
        """
        self.memory.change(scoring_method=method)
        self.scorer = self._feeder.scorer = RelevanceScorer(self._hidden, method)

    def optimize_memory(self, between: Between = no_wait) -> dict[str, int]:
        """Tidy up: what expired goes, what is stored twice is merged, what is used rises a tier.

        `between` is as for `Memory.consolidate`.

        Returns:
            `expired`, `merged` and `risen` blocks of the memory, see `Memory.consolidate`;
            `merged_entries` of the buffer: of the same token and state in a session the newest
            stays; `answers`: answers of former searches that were dropped.
        """
        report = self.memory.consolidate(between)
        between()
        return {
            "expired": report.expired,
            "merged": report.merged,
            "risen": report.risen,
            "merged_entries": self.memory_buffer.drop_duplicates(self.target_layers),
            "answers": self.retriever.clear_cache(),
        }

    # -- reconstruction --------------------------------------------------------------------------

    def enable_reconstruction(self) -> None:
        """Let layers read what is reconstructed of the recalled, as configured, else by `USUAL`."""
        self.memory.change(**self._reconstruction)
        self.reconstruction_enabled = True

    def disable_reconstruction(self) -> None:
        """Let layers read all that is recalled, as it is stored."""
        self.memory.change(**dict.fromkeys(RECONSTRUCTION))
        self.reconstruction_enabled = False

    def set_reconstruction_method(self, method: str) -> None:
        """Reconstruct by another method, where reconstruction is enabled and in `reconstructor`.

        `ConfigError`: there is no such method; the message names the nearest one.
        """
        if method is None:
            raise check.refuse("reconstruction_method", method, "a method's name")
        wanted = {**self._reconstruction, "reconstruction_method": method}
        # The memory checks first, so that a refused method changes nothing.
        if self.reconstruction_enabled:
            self.memory.change(**wanted)
        self.reconstructor.method = method
        self._reconstruction = wanted

    def reconstruct(self, context: RetrievalContext, strategy: str | None = None) -> Reconstruction:
        """Entries of the buffer that help, as states to read: retrieved, then reconstructed.

        Arguments and errors are those of `AdvancedMemoryRetriever.retrieve_memories`.
        """
        return self.reconstructor.reconstruct(
            self.retriever.retrieve_memories(context, strategy),
            context.current_hidden_states,
            layer_idx=context.current_layer_idx,
            attention_mask=context.attention_mask,
        )

    # -- looking ---------------------------------------------------------------------------------

    def get_memory_stats(self) -> dict[str, Any]:
        """What is remembered, as plain data.

        Returns:
            What `CMROutput.memory_stats` always has; `memory`: `Memory.stats`; `buffer`:
            `LayeredMemoryBuffer.get_buffer_stats`; `scoring`: `RelevanceScorer.get_scoring_stats`,
            None of a scorer that has no such thing; `enabled`.
        """
        scoring = getattr(self.scorer, "get_scoring_stats", None)
        return {
            **self._memory_stats(),
            "memory": self.memory.stats(),
            "buffer": self.memory_buffer.get_buffer_stats(),
            "scoring": None if scoring is None else scoring(),
            "enabled": self.memory_enabled and self.registered,
        }

    def get_memory_usage(self) -> dict[str, Any]:
        """Bytes that are taken, preallocated or not, and how much of the room is in use.

        Returns:
            `model_bytes` (parameters and buffers), `memory_bytes`, `buffer_bytes`, `total_bytes`;
            `memory_utilisation` and `buffer_utilisation` in [0, 1].
        """
        stats, buffer = self.memory.stats(), self.memory_buffer.get_buffer_stats()
        # The decoder alone: the projection is no part of it.
        held = [*self.model.parameters(), *self.model.buffers()]
        model = sum(tensor.numel() * tensor.element_size() for tensor in held)
        return {
            "model_bytes": model,
            "memory_bytes": stats["bytes"],
            "buffer_bytes": buffer["nbytes"],
            "total_bytes": model + stats["bytes"] + buffer["nbytes"],
            "memory_utilisation": stats["tokens"] / stats["capacity_tokens"],
            "buffer_utilisation": buffer["utilisation"],
        }

    def get_memory_for_sequence(
        self, sequence: int | str | None = None, *, blocks: bool = False
    ) -> list[MemoryEntry]:
        """What is remembered of a session, oldest first.

        Args:
            sequence: its number (`current_sequence_id`, `MemoryEntry.sequence_id`) or name; None:
                that of row 0 of the last call.
            blocks: the memory's blocks, with states of the index layer; False: the buffer's
                entries, single states at the captured layers.

        Raises:
            UnknownSessionError: there is no such session.
        """
        number, name = self._session(self.current_sequence_id if sequence is None else sequence)
        return (
            self.memory.entries(name) if blocks else self.memory_buffer.retrieve_by_sequence(number)
        )

    def get_top_memories(
        self,
        k: int = 10,
        *,
        layer_idx: int | None = None,
        sequence: int | str | None = None,
        blocks: bool = False,
    ) -> list[MemoryEntry]:
        """What is remembered and of the highest relevance, best first; of equals the newer first.

        Args:
            k: how many at most, 1 or more.
            layer_idx: only entries of this layer; None: of any. Not with `blocks`.
            sequence: only of this session, number or name; None: of any.
            blocks: as in `get_memory_for_sequence`.

        Raises:
            UnknownSessionError: there is no such session.
            ValueError: `layer_idx` with `blocks`.
        """
        number, name = (None, None) if sequence is None else self._session(sequence)
        if not blocks:
            return self.memory_buffer.retrieve_top_k_relevant(
                k, layer_idx=layer_idx, sequence_id=number
            )
        if layer_idx is not None:
            raise ValueError("layer_idx: None expected with blocks, which span all layers")
        k = check.integer("k", k, 1)
        found = self.memory.entries(name)
        return sorted(found, key=lambda entry: (-entry.relevance_score, -entry.timestamp))[:k]

    def clear_memory(self, sequence: int | str | None = None) -> int:
        """Forget a session, or everything, in memory and buffer alike; returns blocks and entries.

        `UnknownSessionError`: there is no such session.
        """
        held = len(self.memory_buffer)
        # A session's entries go when the memory tells that it was forgotten.
        blocks = self.memory.clear(None if sequence is None else self._session(sequence)[1])
        if sequence is None:
            self.memory_buffer.clear_all()
            self.current_sequence_id = -1
        return blocks + held - len(self.memory_buffer)

    def cleanup(self) -> None:
        """Forget everything and take all hooks away: what is left is the decoder, bit for bit."""
        self.clear_memory()
        self.cleanup_hooks()

    def _session(self, sequence: int | str) -> tuple[int, str]:
        """Number and name of a session that there is, by either."""
        table = self.memory._core.table
        if isinstance(sequence, str):
            return table.require(sequence), sequence
        number = check.integer("sequence", sequence, -1)
        return number, table.name_of(number)
