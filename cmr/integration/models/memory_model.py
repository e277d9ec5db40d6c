"""`MemoryModel`: what all model classes hold: a decoder, its memory, and a buffer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cmr.config import CMRConfig
from cmr.errors import AttachError
from cmr.integration.attach import attach_with, caution_captured
from cmr.integration.detection import adapt
from cmr.integration.files.settings import read, to_header
from cmr.integration.memory import Memory
from cmr.integration.models.backbone.backbones import BackboneAdapter, decoder_for
from cmr.integration.models.backbone.loaded import load_backbone
from cmr.integration.models.backbone.quantisation import ready_to_save
from cmr.integration.models.feeder import Feeder, Scorer
from cmr.integration.models.outputs import CMROutput, Projection
from cmr.integration.models.passes import Passes, Sessions, forward_tokens, generated_tokens
from cmr.integration.models.recorder import Recorder
from cmr.integration.models.saved import MEMORY, load_about, load_memory, save_about, save_memory
from cmr.integration.models.settings import expect_parts, model_settings
from cmr.integration.requests.scope import Said
from cmr.integration.requests.session import Session
from cmr.integration.user_hooks.hook import Hook
from cmr.integration.user_hooks.hook_manager import HookManager
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.relevance import RelevanceScorer

CAPTURED = "memory"
"""Name of the hook that captures states."""
Given = CMRConfig | Mapping[str, Any] | None
M = TypeVar("M", bound="MemoryModel")


class MemoryModel(nn.Module):
    """A decoder that remembers every text that passes, and recalls it in later ones.

    A forward first recalls from what its session holds, then runs, then its text becomes memory:
    a text never reads itself. Row i of a batch is session `str(i)` unless names are given. Texts
    are stored twice, on purpose: as blocks that layers read through their attention (`memory`), and
    as single states at the captured layers (`memory_buffer`), to look at and to retrieve.

    Args:
        source: the decoder: a loaded model, a name, a folder, or a configuration, which gets random
            weights, always the same; see `load_backbone`.
        settings: of the memory, nested or flat, see `CMRConfig.from_dict`; `device` in them is the
            device of computation.
        model_name: name or folder of weights, where `source` is their configuration, or None.
        device: 'cpu', 'cuda', 'auto' or None.
        adapter: the kind of decoder that is expected; None: any that is covered.
        output_hidden_size: width of `last_hidden_state`; None: the decoder's own.
        tokenizer: as for `cmr.attach`.
        memory_buffer: a buffer of yours, in place of one made by the settings.
        scorer: what tells the relevance of captured states, in place of a `RelevanceScorer` made by
            the settings: called with states `[rows, tokens, hidden]` and a bool mask `[rows,
            tokens]`, it gives `[rows, tokens]` numbers in [0, 1].
        **loading: the other arguments of `load_backbone`.

    Attributes:
        model: the decoder.
        memory: the `cmr.Memory` that is attached to it while hooks are registered.
        memory_buffer: captured states of the texts that passed, with their relevance.
        scorer: gives them that.
        target_layers: the states that are captured: those of the settings, else the one that is
            searched. Layers read memory at `intervention_layers`, see `model_settings`.
        memory_enabled: whether forwards remember and recall where they do not say otherwise.
        current_sequence_id: number of the session of row 0 of the last call, -1 before the first.
        performance: counts and measures; see `Recorder`.
        hooks: captures states, and takes hooks of your own; see `HookManager`.

    Raises:
        ModelNotFoundError, ConfigError, UnsupportedModelError: see `load_backbone`, `cmr.attach`.
    """

    SCORING = "hybrid"
    """Scoring method where none is given."""
    MEASURED = False
    """Whether every forward gives `performance_stats`."""
    LOOKS_AT: tuple[str, ...] = ()
    """Settings that other parts than its memory look at; 'optimization': it steers itself."""

    def __init__(
        self,
        source: Any,
        settings: Given = None,
        *,
        model_name: str | None = None,
        device: str | torch.device | None = None,
        adapter: BackboneAdapter | None = None,
        output_hidden_size: int | None = None,
        tokenizer: Any = None,
        memory_buffer: LayeredMemoryBuffer | None = None,
        scorer: Scorer | None = None,
        **loading: Any,
    ) -> None:
        super().__init__()
        model: Any = decoder_for(source, model_name, settings, adapter, device=device, **loading)
        # All is checked before anything is attached: what fails leaves the decoder alone.
        given = model_settings(settings, self.SCORING, model.config.get_text_config(decoder=True))
        expect_parts(output_hidden_size, memory_buffer, scorer)
        self.model = model
        # Modules are made in training mode; the decoder stays in the mode that it is in.
        self.training = bool(model.training)
        self.output_hidden_size = output_hidden_size
        self.memory: Memory = attach_with(model, given.config, tokenizer, elsewhere=self.LOOKS_AT)
        core = self.memory._core
        caution_captured(core, given.captured)
        self._given, self._hidden = given, core.adapter.hidden
        self.target_layers = given.captured or (core.layout.index_layer,)
        if memory_buffer is None:
            memory_buffer = LayeredMemoryBuffer(**given.buffer)
        self.memory_buffer = memory_buffer
        method = core.config.memory.scoring_method or self.SCORING
        self.scorer = RelevanceScorer(self._hidden, method) if scorer is None else scorer
        width = output_hidden_size or self._hidden
        self.projection = None if width == self._hidden else Projection(self._hidden, width)
        self.performance = Recorder()
        self.memory_enabled, self.current_sequence_id = True, -1
        # The parts: what captures and stores states, and what runs texts.
        self._feeder = Feeder(self.memory, self.memory_buffer, self.scorer, self.target_layers)
        self._passes = Passes(model, self._feeder)
        # Made last: its hook feeds the parts above.
        self.hooks = HookManager(model, adapter=core.adapter)
        self.register_memory_hooks()

    # -- the decoder's side ----------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The decoder's configuration."""
        return self.model.config

    @property
    def memory_config(self) -> CMRConfig:
        """The settings as they were given, with what was changed since.

        Those of the memory alone are `memory.config`: it does not store the `target_layers`.
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
        # What `fn` does shows on an empty tensor, before weights are touched.
        probe = fn(torch.empty(0, dtype=like.dtype, device=like.device))
        if (probe.device, probe.dtype) == (like.device, like.dtype):
            return super()._apply(fn, recurse)
        if self.memory.tokens or len(self.memory_buffer):
            raise AttachError(
                f"the model cannot go from {like.dtype} on {like.device} to {probe.dtype} on "
                f"{probe.device} while something is remembered: do it before, or clear the memory"
            )
        super()._apply(fn, recurse)
        # The store was made for another device or data type: a new memory takes its place.
        registered, old = self.registered, self.memory
        self.cleanup_hooks()
        self.memory = Memory(adapt(self.model), old.config, old.tokenizer, keep=None)
        self._feeder.follow(self.memory)
        self.memory_buffer.release()
        if registered:
            self.register_memory_hooks()
        else:
            self.memory.detach()
        return self

    # -- switching -------------------------------------------------------------------------------

    @property
    def registered(self) -> bool:
        """Whether the memory's hooks are on the decoder."""
        return self.memory.attached

    @property
    def layer_hooks(self) -> dict[int, Hook]:
        """The hook that captures each of `target_layers`, empty while none is registered."""
        hook = self.hooks.hooks.get(CAPTURED)
        return {} if hook is None else dict.fromkeys(hook.layers, hook)

    def register_memory_hooks(self) -> None:
        """Put the hooks that capture and recall on the decoder; again is no harm."""
        self.memory.reattach()
        if CAPTURED not in self.hooks.hooks:
            self.hooks.capture(CAPTURED, self.target_layers, into=self._feeder.note)

    def cleanup_hooks(self) -> None:
        """Take all hooks away: the decoder is as it was, bit for bit; what is stored stays."""
        if CAPTURED in self.hooks.hooks:
            self.hooks.remove(CAPTURED)
        self.memory.detach()

    def enable_memory(self) -> None:
        """Let calls remember and recall; registers the hooks where that was not done."""
        self.register_memory_hooks()
        self.memory_enabled = True

    def disable_memory(self) -> None:
        """Let calls neither remember nor recall: they are exactly the decoder's."""
        self.memory_enabled = False

    def session(self, *names: str) -> Session:
        """Whose memory calls inside read and write; see `Memory.session`, new ones are made."""
        return self.memory.session(*names, create=True)

    # -- running ---------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_memory: bool | None = None,
        *,
        sessions: Sessions = None,
        task_type: str | None = None,
        **inputs: Any,
    ) -> CMROutput:
        """A forward that recalls first and remembers afterwards.

        Args:
            input_ids: `[batch, tokens]` integers.
            attention_mask: the same shape, 0 for padding.
            use_memory: False: exactly the decoder's; None: as enabled.
            sessions: one name for all rows, or one a row; None: `str(row)`.
            task_type: what the request is about: passages are looked for as that task needs it
                (strategy 'task_specific', see `cmr.register_task`).
            **inputs: of the decoder's forward. With `past_key_values` or `use_cache=True` the
                text goes on: it is stored as it leaves the window, see `Memory.absorb`.

        Raises:
            TypeError, ValueError: for ids or a mask that cannot be read; nothing is stored then.
            ConfigError: there is no such task.
        """
        said = self._said(use_memory, sessions, task_type)
        if input_ids is None and inputs.get("inputs_embeds") is None:
            raise ValueError("input_ids or inputs_embeds expected, got neither")
        inputs = self._passes.inputs(input_ids, attention_mask, inputs)
        with self.performance.measure("forward"):
            passed = self._passes.forward(said, inputs)
            self._note_session(said)
        self.performance.note(tokens=forward_tokens(inputs), **passed.counted)
        output, states = passed.output, passed.states
        return CMROutput(
            # Gradient scoring makes labels of its own, whose loss nobody asked for.
            loss=output.get("loss") if "labels" in inputs else None,
            logits=output.logits,
            last_hidden_state=states if self.projection is None else self.projection(states),
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            past_key_values=passed.cache,
            memory_stats=self._memory_stats(),
            performance_stats=self.performance.stats() if self.MEASURED else None,
        )

    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        use_memory: bool | None = None,
        sessions: Sessions = None,
        task_type: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The decoder's own `generate`, with recall; prompt and answer are memory afterwards.

        All but the last token of the answer, which never went through the model. A cache that is
        given is left alone: what leaves its window is stored as with `cmr.attach`.

        Arguments are those of `forward`, with padding on the left, and others of the decoder's
        `generate`. `ConfigError`: memory is on, and a cache that it cannot store from is asked for.
        """
        said = self._said(use_memory, sessions, task_type)
        inputs = self._passes.inputs(input_ids, attention_mask, kwargs)
        with self.performance.measure("generate"):
            passed = self._passes.generate(said, inputs)
            self._note_session(said)
        tokens = generated_tokens(inputs, passed.output)
        self.performance.note(tokens=tokens, **passed.counted)
        return passed.output

    def _said(self, use_memory: bool | None, sessions: Sessions, task: str | None) -> Said:
        on = self.memory_enabled and self.registered if use_memory is None else bool(use_memory)
        if on and not self.registered:
            raise AttachError("use_memory=True: no hooks are registered; register them first")
        return self._passes.said(on, sessions, task)

    def _note_session(self, said: Said) -> None:
        step = self.memory._stepper.last
        if said.active and step is not None and step.sessions:
            self.current_sequence_id = step.sessions[0]

    def _memory_stats(self) -> dict[str, Any]:
        held = self.memory_buffer.get_buffer_stats()["entries_by_layer"]
        return {
            "total_captured_states": sum(held.values()),
            "layers_with_memory": sorted(layer for layer, count in held.items() if count),
            "tokens": self.memory.tokens,
            "sessions": len(self.memory.sessions),
        }

    # -- saving ----------------------------------------------------------------------------------

    def save_memory(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> None:
        """Save what is remembered, blocks and entries: raw user data.

        Folder, `key` and errors are those of `Memory.save`. Ephemeral sessions are left out.
        """
        save_memory(path, self.memory, self.memory_buffer, key)

    def load_memory(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> int:
        """Take in what `save_memory` saved, entries in place of those here; returns the blocks.

        Raises (nothing is changed then):
            StoreError: there is none, it is damaged, or the key is wrong.
            ModelMismatchError: another model saved it.
            ValueError: a session of a saved name exists here (clear the memory first, or rename
                it), or the buffer has other limits.
        """
        return load_memory(path, self.memory, self.memory_buffer, key)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        memory: bool = False,
        key: bytes | str | None = None,
        **options: Any,
    ) -> None:
        """Save configuration and weights to a folder, as `from_pretrained` takes them.

        With `memory` what is remembered is saved, too, encrypted by `key`: see `save_memory`.
        Options are those of the decoder's own `save_pretrained`.
        """
        where = Path(folder)
        # See there for what bitsandbytes would save otherwise.
        ready_to_save(self.model)
        self.model.save_pretrained(where, **options)
        about = {
            "class": type(self).__name__,
            "config": to_header(self.memory_config),
            "output_hidden_size": self.output_hidden_size,
            "buffer": asdict(self.memory_buffer.limits),
            "memory_enabled": self.memory_enabled,
            "memory": MEMORY if memory else None,
        }
        save_about(where, about)
        if memory:
            self.save_memory(where / MEMORY, key=key)

    @classmethod
    def from_pretrained(
        cls: type[M],
        folder: str | os.PathLike[str],
        *,
        key: bytes | str | None = None,
        tokenizer: Any = None,
        calibration: str | None = None,
        **loading: Any,
    ) -> M:
        """A model as `save_pretrained` left it: it gives the same logits, in a new process, too.

        `key` opens an encrypted memory, `tokenizer` is as for `cmr.attach`, `loading` as for
        `load_backbone`; `calibration` is the file of one's own that it was saved with, if any.

        Raises:
            MemoryNotFoundError: nothing was saved there by such a class.
            ConfigError: another class was saved there.
            StoreError: its memory cannot be loaded.
        """
        where = Path(folder)
        about = load_about(where, cls.__name__)
        given = {} if calibration is None else {"calibration": calibration}
        # The buffer had settings of its own where it was the user's, or changed since.
        made = cls(
            load_backbone(where, **loading),
            read(about["config"], where, given),
            output_hidden_size=about["output_hidden_size"],
            tokenizer=tokenizer,
            memory_buffer=LayeredMemoryBuffer(**about["buffer"]),
        )
        made.memory_enabled = bool(about["memory_enabled"])
        if about["memory"] is not None:
            made.load_memory(where / MEMORY, key=key)
        return made
