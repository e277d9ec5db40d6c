"""A decoder with a memory attached to it, and a buffer of the states that become memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cmr.config import CMRConfig
from cmr.config import checks as check
from cmr.errors import AttachError, ConfigError
from cmr.integration.attaching import attach
from cmr.integration.capture.leaving_text import LeavingText
from cmr.integration.cautions import caution_captured
from cmr.integration.decoder.detection import adapt
from cmr.integration.hooks.hook_manager import Hook, HookManager
from cmr.integration.memory import Memory
from cmr.integration.models.feeder import NOTE, Feeder, Scorer
from cmr.integration.models.passes import Passes
from cmr.integration.models.projection import Projection
from cmr.integration.models.recorder import Recorder
from cmr.integration.models.settings import settings_of
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.relevance import RelevanceScorer

CAPTURED = "memory"
"""Name of the hook that captures states."""


class AttachedModel(nn.Module):
    """A decoder that remembers every text that passes, and recalls it in later ones.

    A forward first recalls from what its session holds, then runs, then its text becomes memory:
    a text never reads itself. Row i of a batch is session `str(i)` unless names are given. What is
    stored twice, on purpose: blocks that layers read through their attention (`memory`, which is
    what `cmr.attach` gives), and single states at the captured layers (`memory_buffer`), to look
    at and to retrieve.

    Args:
        model: the decoder, on its device.
        settings: of the memory, nested or flat; see `settings_of`.
        output_hidden_size: width of `last_hidden_state`; None: the model's own.
        tokenizer: as for `cmr.attach`.
        memory_buffer: a buffer of yours, in place of one made by the settings.
        scorer: what tells the relevance of captured states, in place of a `RelevanceScorer` made by
            the settings: called with states `[rows, tokens, hidden]` and a bool mask `[rows,
            tokens]`, it gives `[rows, tokens]` numbers in [0, 1].

    Attributes:
        model: the decoder.
        memory: attached to it while hooks are registered; see `cmr.Memory`.
        memory_buffer: captured states of the texts that passed.
        scorer: gives them their relevance.
        target_layers: the states that are captured: those of the settings, else the one that is
            searched. Layers read memory where `intervention_layers` say so, else in the range that
            `cmr.attach` takes; see `settings_of`.
        memory_enabled: whether forwards remember and recall where they do not say otherwise.
        current_sequence_id: number of the session of row 0 of the last call, -1 before the first.
        performance: counts and measures; see `Recorder`.
        hooks: captures states; and whatever hooks of your own, see `HookManager`.
    """

    model: Any
    SCORING = "hybrid"
    """Scoring method where none is given."""

    def __init__(
        self,
        model: Any,
        settings: CMRConfig | Mapping[str, Any] | None = None,
        *,
        output_hidden_size: int | None = None,
        tokenizer: Any = None,
        memory_buffer: LayeredMemoryBuffer | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__()
        text_config: Any = model.config.get_text_config(decoder=True)
        longest = getattr(text_config, "max_position_embeddings", None)
        depth = getattr(text_config, "num_hidden_layers", None)
        given = settings_of(settings, self.SCORING, longest, depth)
        if output_hidden_size is not None and (
            isinstance(output_hidden_size, bool)
            or not isinstance(output_hidden_size, int)
            or output_hidden_size < 1
        ):
            raise ConfigError(
                f"output_hidden_size: an integer of at least 1 or None expected, "
                f"got {output_hidden_size!r}"
            )
        if memory_buffer is not None and not isinstance(memory_buffer, LayeredMemoryBuffer):
            raise check.refuse("memory_buffer", memory_buffer, "a LayeredMemoryBuffer or None")
        if scorer is not None and not callable(scorer):
            raise check.refuse("scorer", scorer, "something to call, or None")
        self.model = model
        self.training = bool(model.training)
        self.output_hidden_size = output_hidden_size
        self.memory: Memory = attach(model, given.config, tokenizer=tokenizer)
        core = self.memory._core
        caution_captured(core, given.captured)
        self._given = given
        self.target_layers = given.captured or (core.layout.index_layer,)
        self._buffer_settings = given.buffer
        self.memory_buffer = self._new_buffer() if memory_buffer is None else memory_buffer
        method = core.config.memory.scoring_method or self.SCORING
        self.scorer = RelevanceScorer(core.adapter.hidden, method) if scorer is None else scorer
        self.performance = Recorder()
        self.memory_enabled = True
        self.current_sequence_id = -1
        hidden = core.adapter.hidden
        wide = output_hidden_size in (None, hidden)
        self.projection = None if wide else Projection(hidden, int(output_hidden_size or hidden))
        self._feeder = Feeder(
            core.adapter, core.table, self.memory_buffer, self.scorer, self.target_layers
        )
        self._passes = Passes(model, self.memory, self.scorer, self.target_layers)
        core.on_leaving, core.on_forgotten = self._leaving, self._forgotten
        self.hooks = HookManager(model, adapter=core.adapter)
        self._register()

    # -- the decoder's side ----------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The decoder's configuration."""
        return self.model.config

    @property
    def memory_config(self) -> CMRConfig:
        """The settings as they were given, with what was changed since.

        Those of the memory alone are `memory.config`: what it stores are not `target_layers`.
        """
        return self._given.as_asked(self.memory.config)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.memory._core.adapter.input_device

    @property
    def dtype(self) -> torch.dtype:
        """The decoder's data type of computation."""
        return self.memory._core.adapter.dtype

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """`to`, `half` and the like: before anything is remembered, as the store goes along."""
        like = self.model.get_input_embeddings().weight
        probe = fn(torch.empty(0, dtype=like.dtype, device=like.device))
        if (probe.device, probe.dtype) == (like.device, like.dtype):
            return super()._apply(fn, recurse)
        if self.memory.tokens or len(self.memory_buffer):
            raise AttachError(
                f"the model cannot go from {like.dtype} on {like.device} to {probe.dtype} on "
                f"{probe.device} while something is remembered: do it before, or clear the memory"
            )
        super()._apply(fn, recurse)
        self._attach_anew()
        return self

    def _attach_anew(self) -> None:
        registered, old = self.registered, self.memory
        self._unregister()
        self.memory = Memory(adapt(self.model), old.config, old.tokenizer, keep=None)
        core = self.memory._core
        self._feeder = Feeder(
            core.adapter, core.table, self.memory_buffer, self.scorer, self.target_layers
        )
        self._passes = Passes(self.model, self.memory, self.scorer, self.target_layers)
        core.on_leaving, core.on_forgotten = self._leaving, self._forgotten
        self._set_buffer(self._buffer_settings)
        if registered:
            self._register()
        else:
            self.memory.detach()

    def _new_buffer(self) -> LayeredMemoryBuffer:
        return LayeredMemoryBuffer(**self._buffer_settings)

    def _set_buffer(self, settings: dict[str, Any]) -> None:
        """An empty buffer with other settings."""
        self._buffer_settings = settings
        self.memory_buffer = self._feeder.buffer = self._new_buffer()

    # -- hooks -----------------------------------------------------------------------------------

    @property
    def registered(self) -> bool:
        """Whether the memory's hooks are on the decoder."""
        return self.memory.attached

    @property
    def layer_hooks(self) -> dict[int, Hook]:
        """The hook that captures each of `target_layers`, empty while none is registered."""
        hook = self.hooks.hooks.get(CAPTURED)
        return {} if hook is None else dict.fromkeys(hook.layers, hook)

    def _register(self) -> None:
        self.memory.reattach()
        if CAPTURED not in self.hooks.hooks:
            self.hooks.capture(CAPTURED, self.target_layers, into=self._note)

    def _unregister(self) -> None:
        if CAPTURED in self.hooks.hooks:
            self.hooks.remove(CAPTURED)
        self.memory.detach()

    def _note(self, layer: int, states: torch.Tensor) -> None:
        """Keep states with the tokens of the cache in use, until they become memory."""
        step = self.memory._stepper.step
        if step is not None and step.record is not None:
            step.noted[f"{NOTE}{layer}"] = states

    def _leaving(self, text: LeavingText) -> None:
        self._feeder.take(text)

    def _forgotten(self, sessions: set[int]) -> None:
        for number in sessions:
            if number >= 0:
                self.memory_buffer.clear_sequence(number)
