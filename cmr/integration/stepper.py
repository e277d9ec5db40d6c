"""The hooks around the decoder: have memory asked, let the layers read, keep what leaves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from cmr.config import CMRConfig
from cmr.integration.asking import Asker
from cmr.integration.cache import can_adopt, is_windowed
from cmr.integration.core import Core
from cmr.integration.lasting import lasting
from cmr.integration.plugging import Plugs
from cmr.integration.recall import Recall
from cmr.integration.record import WindowRecord
from cmr.integration.scratch import Scratch
from cmr.integration.step import Step
from cmr.integration.training import Training
from cmr.integration.weave import LayerMemory


class Stepper:
    """Hooks on the decoder and on the blocks whose states are wanted.

    Args:
        core: the memory's store and settings.
        config: its configuration.
    """

    def __init__(self, core: Core, config: CMRConfig) -> None:
        self.core = core
        self.window = config.window
        self.sinks = config.memory.sinks
        self.constant = config.reweave.positions == "constant"
        self.guard = config.reweave.sink_guard
        self._asker = Asker(core, config.retrieval, self.alone)
        self._plugs = Plugs(core.adapter)
        self._training = Training(core.adapter)
        self._ids: torch.Tensor | None = None
        self.step: Step | None = None
        self.last: Step | None = None
        self.scratch = Scratch()
        self._busy = False
        self._recalls = True
        self._followed: list[DynamicCache] | None = None
        self._bounded = True
        self._names = list(inspect.signature(core.adapter.decoder.forward).parameters)
        self._handles: list[Any] = []
        # Not as decorators: those would load the compiler with this module.
        self._begun: Any = torch.compiler.disable(self._begin)

    # -- attaching -------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks in place."""
        adapter = self.core.adapter
        take = self._handles.append
        take(adapter.decoder.register_forward_pre_hook(self._before, with_kwargs=True))
        after = torch.compiler.disable(self._after)
        take(adapter.decoder.register_forward_hook(after, with_kwargs=True, always_call=True))
        wanted = {self.core.index_layer, *self.core.state_layers, *self.core.knn_layers}
        for number in sorted(wanted):
            hook = self._state_hook(number)
            take(adapter.layers[number].register_forward_pre_hook(hook, with_kwargs=True))
        if adapter.model.config is not adapter.config:  # a model of text and more embeds by itself
            take(adapter.model.register_forward_pre_hook(self._note_ids, with_kwargs=True))
            take(adapter.model.register_forward_hook(self._drop_ids, always_call=True))
        self._plugs.attach(self)

    def detach(self) -> None:
        """Take the hooks and marks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._plugs.detach(self)
        self.step = self.last = None
        self.scratch.clear()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Forwards inside are the model's own: nothing is captured or recalled."""
        before, self._busy = self._busy, True
        step, self.step = self.step, None
        try:
            yield
        finally:
            self._busy, self.step = before, step

    @property
    def busy(self) -> bool:
        """Whether the forward under way is one that the memory makes for itself."""
        return self._busy

    @contextmanager
    def without_recall(self) -> Iterator[None]:
        """Forwards inside capture as always and recall nothing."""
        before, self._recalls = self._recalls, False
        try:
            yield
        finally:
            self._recalls = before

    @contextmanager
    def following(self, bounded: bool = True) -> Iterator[list[DynamicCache]]:
        """Gives the caches that forwards inside begin; their sinks are stored, too.

        Args:
            bounded: by the window; False: nothing leaves them.
        """
        before = self._followed, self._bounded
        caches: list[DynamicCache] = []
        self._followed, self._bounded = caches, bounded
        try:
            yield caches
        finally:
            self._followed, self._bounded = before

    @contextmanager
    def lending(
        self, recall: Recall | None, positions: torch.Tensor, token_ids: torch.Tensor
    ) -> Iterator[None]:
        """Layers inside read `recall`, in forwards that are not captured here."""
        before = self.step
        if recall is not None:
            self.step = Step(None, [], recall, positions, None, token_ids)
        try:
            yield
        finally:
            self.step = before

    def forget_recalls(self, sessions: set[int]) -> None:
        """Let go of what was recalled of these sessions, and of what the last forward recalled."""
        self.last = None
        self.search_anew(sessions)

    def search_anew(self, sessions: set[int] | None = None) -> None:
        """Let texts of these sessions that go on search at their next step; None: all texts."""
        for record in list(self.core.records):
            if sessions is None or sessions & set(record.sessions):
                record.forget_recall()
        self._asker.forget()

    def adopt(self, kwargs: dict[str, Any]) -> bool:
        """Give the forward's cache a bounded window where that can be done."""
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        return self._record(kwargs, mask, ids.shape[0], ids.device) is not None

    # -- the attention plug's side ---------------------------------------------------------------

    def memory_for(self, layer: int) -> LayerMemory | None:
        """What block `layer` reads in this forward."""
        step = self.step
        if step is None or step.recall is None:
            return None
        if step.ready is not None:
            return step.ready.get(layer)
        return self._memory(step, step.recall, layer)

    def _memory(self, step: Step, recall: Recall, layer: int) -> LayerMemory | None:
        if layer not in self.core.read_layers or self.core.residual:
            return None
        held, seen = recall.layer(layer), step.query_mask
        device = held.keys.device
        return LayerMemory(
            held,
            recall.bias.to(device),
            None if seen is None else seen.to(device),
            self._turn(step, layer, device),
            step.weights,
        )

    def note_gate(self, layer: int, gate: torch.Tensor) -> None:
        """Keep the gate of this forward, for `recalled`."""
        if self.step is not None:
            self.step.gates[layer] = gate

    def _turn(
        self, step: Step, layer: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What rotates a query from its own position to one window behind position 0.

        Keys are read as they were before their rotation, so an embedding that scales attention
        (YaRN) has its factor here once for the query and once for the keys.
        """
        if not (self.constant and self.core.adapter.rotates(layer)):
            return None
        kind = self.core.adapter.rotary_kind(layer)
        if kind not in step.turns:
            step.turns[kind] = self.core.adapter.rotary(
                layer, self.window - step.position_ids, reach=step.position_ids
            )
        cos, sin = step.turns[kind]
        return cos.to(device), sin.to(device)

    # -- hooks -----------------------------------------------------------------------------------

    def _state_hook(self, number: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            step = self.step
            if step is None:
                return
            states = args[0] if args else kwargs["hidden_states"]
            if number == self.core.index_layer:
                step.index = states.detach()
            if number in self.core.state_layers:
                step.states[number] = states.detach()
            if number in self.core.knn_layers and step.recall is not None:
                step.entering[number] = states.detach()

        return hook

    def _note_ids(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ids = kwargs.get("input_ids", args[0] if args else None)

    def _drop_ids(self, *_: Any) -> None:
        self._ids = None

    def _before(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # Nothing else stands here: a function that once traced to nothing is never traced again.
        return self._begun(decoder, args, kwargs, torch.compiler.is_compiling())

    def _begin(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], compiled: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._busy or not self.core.active:
            return None
        self.core.adapter.require_unmoved()
        kwargs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        if ids is None and self._ids is not None and embeds is not None:
            ids = self._ids if self._ids.shape == embeds.shape[:2] else None
        inputs = ids if ids is not None else embeds
        if inputs is None:
            return None
        batch, tokens = inputs.shape[:2]
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        record = self._record(kwargs, mask, batch, inputs.device)
        cache = kwargs.get("past_key_values")
        seen = _seen(cache, kwargs.get("cache_position"))
        positions = self._positions(kwargs, seen, batch, tokens, inputs.device)
        if not self.core.adapter.has_rotary:
            kwargs["position_ids"] = positions.clamp(max=self.core.adapter.max_positions - 1)
        if mask is None and record is None:
            mask = _visible(kwargs.get("attention_mask"), seen + tokens)
        if is_windowed(cache) and (mask is not None or kwargs.get("attention_mask") is None):
            kwargs["attention_mask"] = cache.layers[0].visible(mask, tokens)  # type: ignore[union-attr]
        new = None if mask is None or tokens > mask.shape[1] else mask[:, -tokens:].bool()
        step = Step(
            record=record,
            sessions=self.core.rows(batch)[0] if record is None else record.sessions,
            recall=None,
            position_ids=positions,
            query_mask=self._guarded(mask, record, seen, batch, tokens),
            token_ids=ids if ids is not None else inputs.new_zeros((batch, tokens)).long(),
            weights=self._weights_wanted(kwargs),
        )
        if self._recalls and self.core.wants_recall(step.sessions):
            self._training.check()
            with lasting():
                step.recall = self._asker.ask(step, decoder, kwargs, new, seen)
        elif self._recalls and record is not None and record.seen and tokens == 1:
            record.steps += 1  # a row searches when it would alone, whatever the others store
        if compiled and record is not None:  # what leaves would be another graph
            cache.layers[0].owner.deferred = True  # type: ignore[union-attr]
        if compiled and step.recall is not None:
            read = {n: self._memory(step, step.recall, n) for n in sorted(self.core.read_layers)}
            step.ready = {n: memory for n, memory in read.items() if memory is not None}
        self.step = step
        return (), kwargs

    @lasting()
    def _after(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        step = None if self._busy else self.step
        if step is not None and step.record is not None:
            _settle(kwargs["past_key_values"])
        if not self._busy:
            self.step = None
        if step is None or step.index is None or output is None:
            return
        self.last = step
        record = step.record
        if record is None:
            return
        if step.index.shape[1] == step.token_ids.shape[1]:
            states = {f"state{n}": s for n, s in step.states.items()}
            if self.core.adapter.rotary_varies:
                states["reach"] = step.position_ids.max().expand_as(step.position_ids)
            record.append(
                token_ids=step.token_ids,
                rope=step.position_ids,
                index=step.index,
                **states,
                **step.noted,
            )
        if step.leaving:
            self.core.leave(record, step.leaving)

    # -- parts of a step -------------------------------------------------------------------------

    def _weights_wanted(self, kwargs: dict[str, Any]) -> bool:
        asked = kwargs.get("output_attentions")
        return bool(self.core.adapter.config.output_attentions if asked is None else asked)

    def _record(
        self, kwargs: dict[str, Any], mask: torch.Tensor | None, batch: int, device: torch.device
    ) -> WindowRecord | None:
        """The record of the cache in use; an empty dynamic cache becomes a bounded one."""
        cache = kwargs.get("past_key_values")
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self.core.adapter.config, "use_cache", True)
        if cache is None and use_cache:
            cache = kwargs["past_key_values"] = DynamicCache(config=self.core.adapter.config)
        record = self._record_of(cache, batch)
        if record is not None or not can_adopt(cache):
            return record
        padding, behind = [0] * batch, None
        if mask is not None and not bool(mask.all()):
            padding = mask.long().argmax(dim=-1).tolist()
            behind = mask.shape[1], mask.flip(-1).long().argmax(dim=-1).tolist()
        sessions, writers = self.core.rows(batch, create=True)
        whole = self._followed is not None
        record = WindowRecord(sessions, writers, padding, self.sinks, behind, whole)
        self.core.records.add(record)
        window = self.core.new_window(padding, whole, self._bounded)
        if self._followed is not None:
            self._followed.append(cache)
        window.record = record
        window.on_leave = self._leaving
        window.on_copy = self.core.records.add
        window.adopt(cache, self.core.adapter.depth)
        return record

    def _record_of(self, cache: object, batch: int) -> WindowRecord | None:
        """The record of a bounded cache of this memory, None where it tells another story.

        So it is when the cache was used while the memory was paused or when a session of it has
        ended: such a cache goes on, and what leaves it is not stored.
        """
        if not is_windowed(cache):
            return None
        owner = cache.layers[0].owner  # type: ignore[attr-defined]
        record = owner.record
        if owner.on_leave != self._leaving or not isinstance(record, WindowRecord):
            return None
        same = len(record.sessions) == batch and record.seen == cache.get_seq_length()  # type: ignore[attr-defined]
        return record if same and self.core.table.alive(record.sessions) else None

    def _leaving(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if self.step is not None:
            self.step.leaving[layer] = (keys, values)

    def _positions(
        self,
        kwargs: dict[str, Any],
        seen: int,
        batch: int,
        tokens: int,
        device: torch.device,
    ) -> torch.Tensor:
        """Positions `[batch, tokens]` that the model will use."""
        given = kwargs.get("position_ids")
        if given is not None:
            return given.expand(batch, -1)
        return (torch.arange(tokens, device=device) + seen).expand(batch, -1)

    def _guarded(
        self,
        mask: torch.Tensor | None,
        record: WindowRecord | None,
        seen: int,
        batch: int,
        tokens: int,
    ) -> torch.Tensor | None:
        """`[batch, tokens]`, False for the first tokens of a text; None when all may read."""
        padding = max(record.padding, default=0) if record is not None else 0
        if seen >= self.guard + padding and (record is not None or mask is None):
            return None
        if mask is not None:
            return mask.long().cumsum(-1)[:, -tokens:] > self.guard
        return (torch.arange(seen, seen + tokens) >= self.guard).expand(batch, -1)


def _seen(cache: Any, position: torch.Tensor | None) -> int:
    """Tokens that a cache has seen.

    In the first releases of transformers 5 a static cache counts its rows of zeros for empty ones,
    and such are the keys of padding; but there the new tokens' places are given.
    """
    if cache is None:
        return 0
    if position is not None and not is_windowed(cache):
        return int(position[0])
    return int(cache.get_seq_length())


def _settle(cache: DynamicCache) -> None:
    """Let what a compiled forward had to keep leave the window."""
    owner = cache.layers[0].owner
    if owner.deferred:
        owner.deferred = False
        for layer in cache.layers:
            layer.settle()


def _visible(mask: Any, tokens: int) -> torch.Tensor | None:
    """`[batch, tokens]` bool of what the last token sees, from a mask prepared for the layers.

    Such masks are `[batch, 1, new, seen]`, bool or additive, or one of these a kind of layer.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        return None
    last = mask[:, 0, -1, :tokens]
    return last if last.dtype == torch.bool else last == 0
