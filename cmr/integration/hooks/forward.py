"""The hooks around the decoder: have memory asked, let the layers read, keep what leaves.

One forward in order. `_begin`, in front of the decoder, waits for the memory's lock, finds the
request (of the `generate` under way, or one for this forward alone), gives an empty cache a bounded
window with a record, and lets the memory be asked; the forward's `Step` then stands in
`Stepper.step`. The layers' hooks note the states that are wanted, their attention reads what the
step recalled, the cache hands over what leaves its window. `_after`, behind the decoder, adds the
new tokens to the record, stores what left, and hands the lock on. Whatever raises in between,
`_after` still runs; an interrupt, for which PyTorch runs no hooks, is caught around the decoder's
own `forward`.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from cmr.config import CMRConfig
from cmr.integration.capture.lasting import lasting
from cmr.integration.capture.window import is_windowed
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.capture.windows import Windows
from cmr.integration.core import Core
from cmr.integration.decoder.adapter_watch import AdapterWatch
from cmr.integration.hooks.asker import Asker
from cmr.integration.hooks.step import Step
from cmr.integration.hooks.training import Training
from cmr.integration.requests.request import Request, current, last_here, new_request, note_last
from cmr.integration.requests.scope import Said, call
from cmr.integration.requests.turns import Turns
from cmr.integration.reweave.attention import LayerMemory
from cmr.integration.reweave.plugs import Plugs
from cmr.integration.reweave.recall import Recall
from cmr.integration.reweave.scratch import StepScratch


class _Here(threading.local):
    """What is known in this thread alone; it names nobody.

    Attributes:
        ids: token ids of a model that embeds by itself, until its decoder begins.
    """

    def __init__(self) -> None:
        self.ids: weakref.WeakKeyDictionary[Stepper, torch.Tensor] = weakref.WeakKeyDictionary()


_HERE = _Here()


class Stepper:
    """Hooks on the decoder and on the blocks whose states are wanted.

    Args:
        core: the memory's store and settings.
        config: its configuration.

    Attributes:
        step: the forward of the thread that holds the lock; None between forwards. It knows
            sessions by their numbers only.
        scratch: tensors that a decoding step writes into.
    """

    def __init__(self, core: Core, config: CMRConfig) -> None:
        self.core = core
        self.window = config.window
        self.constant = config.reweave.positions == "constant"
        self.guard = config.reweave.sink_guard
        self._refresh = config.retrieval.refresh
        self._asker = Asker(core, config.retrieval, self.alone)
        self._plugs = Plugs(core.adapter)
        self.adapters = AdapterWatch(core, self.search_anew)
        self._training = Training(core.adapter)
        self.step: Step | None = None
        self.scratch = StepScratch()
        self._busy = False
        self._turns = Turns(core, self)
        self._windows = Windows(core, config.memory.sinks, self._leaving)
        self._names = list(inspect.signature(core.adapter.decoder.forward).parameters)
        self._handles: list[Any] = []
        # Not as decorators: those would load the compiler with this module.
        self._begun: Any = torch.compiler.disable(self._begin)

    # -- attaching -------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks in place."""
        adapter = self.core.adapter
        self._turns.attach(adapter.decoder, self._interrupted)
        take = self._handles.append
        take(adapter.decoder.register_forward_pre_hook(self._before, with_kwargs=True))
        after = torch.compiler.disable(self._after)
        take(adapter.decoder.register_forward_hook(after, with_kwargs=True, always_call=True))
        wanted = {
            self.core.layout.index_layer,
            *self.core.layout.state_layers,
            *self.core.layout.knn_layers,
        }
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
        self._turns.detach(self.core.adapter.decoder)
        self._turns.end()  # where a hook of somebody's detaches in the middle of a forward
        self.step = None

    def forget_everything(self) -> None:
        """Let go of what last forwards have recalled, and of the tensors that steps write into."""
        for last in list(self.core.lasts):
            last.step = None
        self.scratch.clear()

    @property
    def under_way(self) -> bool:
        """Whether a forward is under way in this thread."""
        return self._turns.under_way

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Forwards inside are the model's own: nothing is captured or recalled.

        Nobody else runs one meanwhile: the lock is held.
        """
        with self.core.lock:
            before, self._busy = self._busy, True
            step, self.step = self.step, None
            try:
                yield
            finally:
                self._busy, self.step = before, step

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    @property
    def busy(self) -> bool:
        """Whether the forward under way here is one that the memory makes for itself."""
        return self._busy and self.core.lock.mine

    @property
    def last(self) -> Step | None:
        """The last forward of this thread or task; None: there was none, or it was forgotten."""
        return last_here(self.core)

    @contextmanager
    def following(self, bounded: bool = True) -> Iterator[list[DynamicCache]]:
        """Gives the caches that requests inside begin; their sinks are stored, too.

        Args:
            bounded: by the window; False: nothing leaves them.
        """
        caches: list[DynamicCache] = []
        with call(self.core, Said(caches=caches, bounded=bounded)):
            yield caches

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
        """Let go of what was recalled of these sessions, also by last forwards."""
        for last in list(self.core.lasts):
            if last.step is not None and sessions & set(last.step.sessions):
                last.step = None
        self.search_anew(sessions)

    def search_anew(self, sessions: set[int] | None = None) -> None:
        """Let texts of these sessions that go on search at their next step; None: all texts."""
        for record in list(self.core.records):
            if sessions is None or sessions & set(record.sessions):
                record.forget_recall()
        self._asker.forget()

    def adopt(self, request: Request, kwargs: dict[str, Any]) -> bool:
        """Give the cache of a forward of a request a bounded window where that can be done."""
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        with self.core.lock:
            found = self._windows.record(request, kwargs, mask, ids.shape[0])
            return found is not None

    def ask_alone(
        self, request: Request, token_ids: torch.Tensor, sessions: list[int]
    ) -> Recall | None:
        """What a text `[rows, tokens]` would recall; nothing of it is kept or read."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        step = Step(None, sessions, None, positions.expand(len(sessions), -1), None, token_ids)
        inputs = {"input_ids": token_ids, "use_cache": False}
        return self._asker.ask(step, request, self.core.adapter.decoder, inputs, None, 0)

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
        if layer not in self.core.layout.read_layers or self.core.layout.residual:
            return None
        held, seen = recall.layer(layer), step.query_mask
        device = held.keys.device
        return LayerMemory(
            held,
            recall.bias.to(device),
            None if seen is None else seen.to(device),
            self._turn(step, layer, device),
            step.gates,
            step.weights,
        )

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
            if number == self.core.layout.index_layer:
                step.index = states.detach()
            if number in self.core.layout.state_layers:
                step.states[number] = states.detach()
            if number in self.core.layout.knn_layers and step.recall is not None:
                step.entering[number] = states.detach()

        return hook

    def _note_ids(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            _HERE.ids.pop(self, None)
        else:
            _HERE.ids[self] = ids

    def _drop_ids(self, *_: Any) -> None:
        _HERE.ids.pop(self, None)

    def _before(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # Nothing else stands here: a function that once traced to nothing is never traced again.
        return self._begun(decoder, args, kwargs, torch.compiler.is_compiling())

    def _begin(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], compiled: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.busy:
            return None
        # Also where nothing is remembered: what looks ahead stops every forward that comes by.
        self._turns.begin()
        try:
            return self._begin_step(decoder, args, kwargs, compiled)
        except BaseException:
            self._turns.end()
            raise

    def _interrupted(self) -> None:
        if not self.busy:
            self._turns.end()

    def _begin_step(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], compiled: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        core = self.core
        kwargs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        cache = kwargs.get("past_key_values")
        request = current(core) or new_request(core, named=self._windows.goes_on(cache))
        noted = _HERE.ids.pop(self, None)
        if not request.active:
            return None
        core.adapter.require_unmoved()
        self._plugs.require_unchanged()
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        if ids is None and noted is not None and embeds is not None:
            ids = noted if noted.shape == embeds.shape[:2] else None
        inputs = ids if ids is not None else embeds
        if inputs is None:
            return None
        batch, tokens = inputs.shape[:2]
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        record = self._windows.record(request, kwargs, mask, batch)
        cache = kwargs.get("past_key_values")
        seen = _seen(cache, kwargs.get("cache_position"))
        positions = self._positions(kwargs, seen, batch, tokens, inputs.device)
        if not core.adapter.has_rotary:
            kwargs["position_ids"] = positions.clamp(max=core.adapter.max_positions - 1)
        if mask is None and record is None:
            mask = _visible(kwargs.get("attention_mask"), seen + tokens)
        if is_windowed(cache) and (mask is not None or kwargs.get("attention_mask") is None):
            kwargs["attention_mask"] = cache.layers[0].visible(mask, tokens)  # type: ignore[union-attr]
        new = None if mask is None or tokens > mask.shape[1] else mask[:, -tokens:].bool()
        step = Step(
            record=record,
            sessions=core.rows(request, batch)[0] if record is None else record.sessions,
            recall=None,
            position_ids=positions,
            query_mask=self._guarded(mask, record, seen, batch, tokens),
            token_ids=ids if ids is not None else inputs.new_zeros((batch, tokens)).long(),
            goes_on=_goes_on(record, request, tokens),
            weights=self._weights_wanted(kwargs),
        )
        self.adapters.check(step.sessions)
        if request.recalls and core.wants_recall(step.sessions, request.retriever):
            self._training.check()
            self._tell_of_rows_without(request, step)
            with lasting():
                step.recall = self._asker.ask(step, request, decoder, kwargs, new, seen)
        elif request.recalls and record is not None and step.goes_on:
            record.due(tokens, self._refresh)  # a row searches when it would alone
        if record is not None and request.recalls and request.inputs is not None:
            record.asked_for = weakref.ref(request)
        if compiled and record is not None:  # what leaves would be another graph
            cache.layers[0].owner.deferred = True  # type: ignore[union-attr]
        if compiled and step.recall is not None:
            read = {n: self._memory(step, step.recall, n) for n in sorted(core.layout.read_layers)}
            step.ready = {n: memory for n, memory in read.items() if memory is not None}
        self.step = step
        return (), kwargs

    @lasting()
    def _after(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self.busy:
            return
        if not self._turns.under_way:  # it could not even begin
            return
        try:
            if self.step is not None:
                self._finish(self.step, kwargs, output)
        finally:
            self._turns.end()

    def _finish(self, step: Step, kwargs: dict[str, Any], output: Any) -> None:
        """Take note of what a forward gave, and store what left its window."""
        record = step.record
        if record is not None:
            _settle(kwargs["past_key_values"])
        if step.index is None or output is None:
            return
        note_last(self.core, step)
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

    def _tell_of_rows_without(self, request: Request, step: Step) -> None:
        """Warn where rows that nobody named have no memory beside one that has."""
        if request.names is not None or len(step.sessions) == 1:
            return
        held = [self.core.ring.blocks_of(number) > 0 for number in step.sessions]
        if all(held):
            return
        self.core.warn(
            "rows",
            f"row {held.index(True)} of this batch reads memory and row {held.index(False)} has "
            "none: without names row i is session str(i), which no other row reads. To ask about "
            "one text in every row, name its session: memory.session('0').generate(...), or "
            "`with memory.session('0'):`",
        )

    # -- parts of a step -------------------------------------------------------------------------

    def _weights_wanted(self, kwargs: dict[str, Any]) -> bool:
        asked = kwargs.get("output_attentions")
        return bool(self.core.adapter.config.output_attentions if asked is None else asked)

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


def _goes_on(record: WindowRecord | None, request: Request, tokens: int) -> bool:
    """Whether the new tokens go on with a text, and ask nothing new.

    So does a single token, and so do several in a `generate` whose prompt has asked already: those
    are candidates that assisted decoding verifies.
    """
    if record is None or not record.seen:
        return False
    asked = None if record.asked_for is None else record.asked_for()
    return tokens == 1 or (asked is not None and asked is request)


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
