"""`CMRPerformanceOptimizer`: everything that steers a memory while people ask its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cmr.config import OptimizationConfig
from cmr.config import checks as check
from cmr.errors import AttachError, ConfigError
from cmr.integration.attach import memory_of
from cmr.integration.memory import Memory
from cmr.integration.requests.answers import Answer
from cmr.optimization.background import BackgroundOptimizer
from cmr.optimization.batches import BatchProcessingOptimizer
from cmr.optimization.prefetcher import MemoryPrefetcher
from cmr.optimization.scheduler import ComputationScheduler
from cmr.optimization.slack import Slack
from cmr.optimization.thresholds import AdaptiveThresholdManager


class CMRPerformanceOptimizer:
    """Steers a model's memory from now on until `close`, however the model is asked.

    It is told of every request that searches when that is over: `model.generate`, a forward, a
    session's handle, a pipeline. Each part is there where its setting is on, and does nothing to
    the others; with all of them off nothing is registered. May be used from several threads,
    beside whatever else uses the memory.

    Args:
        model: a model class of this library, or a decoder with a memory attached.
        optimization_config: which parts are on, as `OptimizationConfig` or its fields;
            `enable_adaptive_thresholds`: `thresholds` holds a target;
            `enable_batch_optimization`: `batching` splits the padded batches of
            `optimize_forward`, and nobody else's;
            `enable_prefetching`: `prefetcher` brings up the sessions that are expected next, in
            slack after a request; `enable_background_optimization`: `background` tidies up in
            slack. None: all are off.
        wanted: what of the target `thresholds` holds, see `AdaptiveThresholdManager`.
        target: 'recall_rate', 'latency' or 'bytes'.
        setting: what it moves for that, 'threshold' or 'relevance_threshold'.
        batch_tokens: most tokens of a micro-batch, padding among them.
        upkeep_seconds: between two times that are tidied up.
        quiet_seconds: since the last request, before slack is made use of.

    Attributes:
        memory: of the model.
        slack: says when no request is under way; None where nobody waits for it.
        scheduler: what is deferred until then; tasks may be added. Without slack they wait for its
            `run`, or `close`.
        thresholds, batching, prefetcher, background: the parts, None where they are off.

    Raises:
        AttachError: the model has no memory.
        ConfigError: an unknown setting, or a value out of its range.
    """

    def __init__(
        self,
        model: Any,
        optimization_config: OptimizationConfig | Mapping[str, Any] | None = None,
        *,
        wanted: float = 0.5,
        target: str = "recall_rate",
        setting: str = "threshold",
        batch_tokens: int = 2048,
        upkeep_seconds: float = 60.0,
        quiet_seconds: float = 0.05,
    ) -> None:
        on = _settings(optimization_config)
        self.model, self.config = model, on
        self._own = isinstance(getattr(model, "memory", None), Memory)
        self.memory = memory_of(model)
        # What is off is checked as well, as far as it is not about this memory.
        batching = BatchProcessingOptimizer(batch_tokens)
        check.real("quiet_seconds", quiet_seconds, 0.0)
        check.positive("upkeep_seconds", upkeep_seconds)
        self.thresholds: AdaptiveThresholdManager | None = None
        if on.enable_adaptive_thresholds:
            self.thresholds = AdaptiveThresholdManager(
                self.memory, wanted, target=target, setting=setting
            )
        self.batching = batching if on.enable_batch_optimization else None
        self.prefetcher = MemoryPrefetcher(self.memory) if on.enable_prefetching else None
        waits = on.enable_prefetching or on.enable_background_optimization
        self.slack = Slack(self.memory, quiet_seconds) if waits else None
        self.scheduler = ComputationScheduler(slack=self.slack)
        self.background: BackgroundOptimizer | None = None
        if on.enable_background_optimization:
            upkeep = getattr(model, "optimize_memory", self.memory.consolidate)
            self.background = BackgroundOptimizer(upkeep, upkeep_seconds, self.slack).start()
        told = self.thresholds is not None or self.prefetcher is not None
        self._end = self.memory.watch_requests(self._steer) if told else None

    def _steer(self, answers: list[Answer]) -> None:
        """What a request gave steers those behind it; in its thread, so this is quick."""
        if self.thresholds is not None:
            self.thresholds.update(answers)
        if self.prefetcher is not None:
            self.prefetcher.note([answer.session for answer in answers if answer.session])
            self.scheduler.submit("prefetch", self._prefetch)

    def _prefetch(self) -> int:
        assert self.prefetcher is not None and self.slack is not None
        return self.prefetcher.prefetch(between=self.slack.wait)

    def optimize_forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        sessions: Sequence[str] | str | None = None,
        **inputs: Any,
    ) -> Any:
        """What the model's forward gives for the tokens of the batch; at padding anything.

        Args:
            input_ids: `[batch, tokens]` integers.
            attention_mask: the same shape, 0 for padding; None: none is padding.
            sessions: one name for all rows, or one a row; None: as the surrounding
                `memory.session(...)` says, else `str(row)`.
            **inputs: for the model's forward. A batch is not split where rows share a session,
                where one of these is a tensor or a cache, or attention weights are asked for.

        Raises:
            ValueError: shapes that do not fit, or another number of names than of rows.
            ConfigError: names, and memory is off.
            AttachError: the model has another memory by now.
        """
        if input_ids.ndim != 2 or not input_ids.numel():
            raise ValueError(
                f"input_ids: [batch, tokens] with a token at least expected, "
                f"got {list(input_ids.shape)}"
            )
        if attention_mask is not None and (
            attention_mask.shape != input_ids.shape or not bool(attention_mask.any(-1).all())
        ):
            raise ValueError(
                f"attention_mask: {list(input_ids.shape)} expected (as input_ids) with a token in "
                f"every row, got {list(attention_mask.shape)}"
            )
        # A memory that was attached anew since would be steered by what the old one did.
        if memory_of(self.model) is not self.memory:
            raise AttachError("the model has another memory than this optimizer was made for")
        if not self._remembers(inputs):
            if sessions is not None:
                raise ConfigError("sessions say whose memory is read, and memory is off")
            return self.model(**_given(input_ids, attention_mask, inputs))
        names = self._names(sessions, len(input_ids))
        if self.batching is None or _belong_together(names, inputs):
            return self._forward(names, _given(input_ids, attention_mask, inputs))
        return self.batching.forward(
            lambda part, cut: self._forward([names[row] for row in part.rows], {**cut, **inputs}),
            input_ids,
            attention_mask,
        )

    def _remembers(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a forward reads and writes memory."""
        if not self._own:
            return self.memory.active
        wanted = inputs.get("use_memory")
        return bool(self.model.memory_enabled if wanted is None else wanted)

    def _names(self, sessions: Sequence[str] | str | None, batch: int) -> list[str]:
        """The session of each row."""
        if sessions is None:
            sessions = self.memory.named or [str(row) for row in range(batch)]
        names = [sessions] if isinstance(sessions, str) else list(sessions)
        if len(names) == 1:
            return names * batch
        if len(names) != batch:
            raise ValueError(f"sessions: {batch} names expected, one a row, got {len(names)}")
        return names

    def _forward(self, names: list[str], inputs: dict[str, Any]) -> Any:
        """One forward of these sessions."""
        # One name stands for all rows, which then share what they recall.
        given = list(dict.fromkeys(names)) if len(set(names)) == 1 else names
        if self._own:
            return self.model(sessions=given, **inputs)
        with self.memory.session(*given, create=True):
            return self.model(**inputs)

    def stats(self) -> dict[str, Any]:
        """What each part that is on has done, by its name, and the `scheduler`."""
        parts = {
            "thresholds": self.thresholds,
            "batching": self.batching,
            "prefetcher": self.prefetcher,
            "background": self.background,
            "scheduler": self.scheduler,
        }
        return {name: part.stats() for name, part in parts.items() if part is not None}

    def close(self) -> None:
        """Steer no more: threads end, what is still deferred is run, and the settings stay."""
        if self._end is not None:
            self._end()
        # First of all: threads that wait for slack end by that.
        if self.slack is not None:
            self.slack.close()
        if self.background is not None:
            self.background.close()
        self.scheduler.close()
        while self.scheduler.waiting:
            self.scheduler.run()

    def __enter__(self) -> CMRPerformanceOptimizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _settings(given: OptimizationConfig | Mapping[str, Any] | None) -> OptimizationConfig:
    if given is None:
        return OptimizationConfig()
    if isinstance(given, OptimizationConfig):
        return given
    if not isinstance(given, Mapping):
        raise check.refuse("optimization_config", given, "a dict of settings")
    known = set(OptimizationConfig.__dataclass_fields__)
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown setting {name}: {check.nearest(name, known)}")
    return OptimizationConfig(**given)


def _given(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
    return {name: value for name, value in given.items() if value is not None}


def _belong_together(names: list[str], inputs: Mapping[str, Any]) -> bool:
    """Whether rows must run in one forward: of one session, or with inputs of the whole batch."""
    return (
        len(set(names)) < len(names)
        or bool(inputs.get("output_attentions"))
        or any(isinstance(value, torch.Tensor) for value in inputs.values())
        or inputs.get("past_key_values") is not None
    )
