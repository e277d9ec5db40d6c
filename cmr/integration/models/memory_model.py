"""What all model classes share: texts pass through a decoder, are recalled and remembered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch

from cmr.errors import AttachError, ConfigError
from cmr.integration.capture.rows import checked
from cmr.integration.models.attached import AttachedModel
from cmr.integration.models.outputs import CMROutput
from cmr.integration.requests.scope import Said, call
from cmr.integration.requests.session import Session
from cmr.retrieval.strategies.tasks import settings_of as task_settings

Sessions = str | Sequence[str] | None


class MemoryModel(AttachedModel):
    """A decoder that remembers every text that passes, and recalls it in later ones.

    A forward first recalls from what its session holds, then runs, then its text becomes memory: a
    text never reads itself. Row i of a batch is session `str(i)` unless names are given.
    """

    # -- switching -------------------------------------------------------------------------------

    def register_memory_hooks(self) -> None:
        """Put the hooks that capture and recall on the decoder; again is no harm."""
        self._register()

    def cleanup_hooks(self) -> None:
        """Take all hooks away: the decoder is as it was, bit for bit; what is stored stays."""
        self._unregister()

    def enable_memory(self) -> None:
        """Let calls remember and recall; registers the hooks where that was not done."""
        self._register()
        self.memory_enabled = True

    def disable_memory(self) -> None:
        """Let calls neither remember nor recall: they are exactly the decoder's."""
        self.memory_enabled = False

    # -- running ---------------------------------------------------------------------------------

    def _run(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        use_memory: bool | None,
        sessions: Sessions,
        task: str | None,
        inputs: dict[str, Any],
    ) -> CMROutput:
        """A forward; see the classes' `forward`."""
        on = self._wants(use_memory, sessions, task)
        if input_ids is not None:
            vocabulary = self.memory._core.adapter.config.vocab_size
            input_ids, attention_mask = checked(input_ids, attention_mask, vocabulary)
        elif inputs.get("inputs_embeds") is None:
            raise ValueError("input_ids or inputs_embeds expected, got neither")
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        recalls, blocks, cached = self._recalls, 0, True
        final: list[torch.Tensor] = []
        with self.performance.measure("forward"), self._final(final):
            if not on:
                with self._resting():
                    output = self.model(**inputs)
            else:
                with self._for(sessions, task):
                    if "past_key_values" in inputs or inputs.get("use_cache"):
                        output = self.model(**inputs)
                    else:
                        output, blocks = self._passes.whole(inputs)
                        cached = False
                    self._note_sequence()
        size = input_ids if input_ids is not None else inputs["inputs_embeds"][..., 0]
        tokens = size.numel() if attention_mask is None else int(attention_mask.sum())
        self.performance.note(
            "forward", tokens=tokens, recalls=self._recalls - recalls, stored_blocks=blocks
        )
        states = final[-1]
        return CMROutput(
            loss=output.get("loss") if "labels" in inputs else None,
            logits=output.logits,
            last_hidden_state=states if self.projection is None else self.projection(states),
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            past_key_values=output.get("past_key_values") if cached else None,
            memory_stats=self._memory_stats(),
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

        Args:
            input_ids: `[batch, tokens]`.
            attention_mask: the same shape, 0 for padding on the left.
            use_memory: False: exactly the decoder's `generate`; None: as enabled.
            sessions: one name for all rows, or one a row; None: `str(row)`.
            task_type: as for `forward`.
            **kwargs: for the decoder's `generate`.

        Raises:
            ConfigError: with memory, a cache that cannot be stored from is asked for.
        """
        on = self._wants(use_memory, sessions, task_type)
        if input_ids is not None:
            vocabulary = self.memory._core.adapter.config.vocab_size
            input_ids, attention_mask = checked(input_ids, attention_mask, vocabulary)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        recalls, blocks = self._recalls, 0
        with self.performance.measure("generate"):
            if not on:
                with self._resting():
                    output = self.model.generate(**inputs)
            else:
                _can_store(kwargs)
                with self._for(sessions, task_type):
                    output, blocks = self._passes.generate(inputs)
                    self._note_sequence()
        ids = output if isinstance(output, torch.Tensor) else output.sequences
        given = 0 if input_ids is None else input_ids.shape[1]
        prompt = given * len(ids) if attention_mask is None else int(attention_mask.sum())
        self.performance.note(
            "generate",
            tokens=prompt + len(ids) * (ids.shape[1] - given),
            recalls=self._recalls - recalls,
            stored_blocks=blocks,
        )
        return output

    def _wants(self, use_memory: bool | None, sessions: Sessions, task: str | None) -> bool:
        """Whether a call remembers and recalls; all that it is given is checked."""
        on = self.memory_enabled and self.registered if use_memory is None else bool(use_memory)
        if on and not self.registered:
            raise AttachError("use_memory=True: no hooks are registered; register them first")
        if not on and (sessions is not None or task is not None):
            raise ConfigError("sessions and task_type say whose memory is read, and memory is off")
        if task is not None:
            task_settings(task)
        return on

    def session(self, *names: str) -> Session:
        """Whose memory calls inside read and write; see `Memory.session`, new ones are made."""
        return self.memory.session(*names, create=True)

    @contextmanager
    def _for(self, sessions: Sessions, task: str | None) -> Iterator[None]:
        """Whose memory is read, and what the request is about."""
        names = (sessions,) if isinstance(sessions, str) else sessions
        core = self.memory._core
        said = Said(active=True)
        if names is not None:
            said = replace(said, names=tuple(names), create=True)
            core.table.check(*names)
        if task is not None:
            said = replace(said, about=(task,), settings={"strategy": "task_specific"})
        with call(core, said):
            yield

    def _resting(self) -> AbstractContextManager[None]:
        """The decoder is exactly itself inside."""
        return call(self.memory._core, Said(active=False))

    @contextmanager
    def _final(self, found: list[torch.Tensor]) -> Iterator[None]:
        """Adds the states in front of the head, whatever the decoder gives besides."""
        decoder, me = self.memory._core.adapter.decoder, threading.get_ident()

        def note(_: Any, __: Any, output: Any) -> None:
            if threading.get_ident() == me:  # another thread's forward may come by
                found.append(output[0])

        handle = decoder.register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def _note_sequence(self) -> None:
        step = self.memory._stepper.last
        if step is not None and step.sessions:
            self.current_sequence_id = step.sessions[0]

    @property
    def _recalls(self) -> int:
        return self.memory._core.recalls_made

    # -- looking ---------------------------------------------------------------------------------

    def _memory_stats(self) -> dict[str, Any]:
        held = self.memory_buffer.get_buffer_stats()["entries_by_layer"]
        return {
            "total_captured_states": sum(held.values()),
            "layers_with_memory": sorted(layer for layer, count in held.items() if count),
            "tokens": self.memory.tokens,
            "sessions": len(self.memory.sessions),
        }


def _can_store(options: Mapping[str, Any]) -> None:
    """Raises where `generate` would use a cache that memory cannot follow."""
    implementation = options.get("cache_implementation")
    if implementation not in (None, "dynamic", "dynamic_full") or options.get("use_cache") is False:
        raise ConfigError(
            "generate with memory stores from a dynamic cache: use_cache=True and no "
            f"cache_implementation expected, got {implementation or 'use_cache=False'!r}; "
            "use_memory=False generates without"
        )
