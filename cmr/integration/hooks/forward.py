"""The hooks around the decoder: have memory asked, let the layers read, keep what leaves.

One forward, told in the order in which things happen:

1. `generate` (hooks/generation.py) has made a request, or nobody has. A model that embeds images
   itself gives its decoder no token ids: hooks/token_ids.py notes them in front of the model.
2. `_before`, in front of the decoder, leads to `_begin`. It waits for the memory's lock, which
   hands forwards on in the order in which they came (requests/lock.py): one runs at a time.
3. `_begin_step` finds the request: that of the `generate` under way, or a new one for this forward
   alone. It tells whose sessions the rows are, with which settings they search, and whether memory
   is active at all. Where it is not, nothing more happens and the model runs as it is.
4. The plugs (reweave/plugs.py) look that the model is still the one that the memory was attached
   to, and in front of a prompt `Identity` (decoder/identity.py) that it has the weights of what is
   stored.
5. `_record` finds the record of the cache. An empty cache gets a bounded window with a new record;
   a cache that cannot be followed reads memory and becomes none itself.
6. `Step.look` finds out where the new tokens stand, and which of them may read.
7. `Asker.recalled` says what the layers read. A prompt searches with all its new tokens: the first
   layers run ahead for their states, and as far as they read nothing do not run again
   (hooks/first_layers.py). A text that goes on searches anew once in `refresh` tokens,
   with the newest ones of its record, and reads what it has found in between.
8. The step stands in `step` from here on, and the decoder runs. In front of each layer whose states
   are wanted, the hook of `_note_states` notes them. In each attention the plug (reweave/plugs.py)
   asks `memory_for`, and weaves what it is given into the window's attention. The cache hands what
   leaves its window to `_leaving`.
9. `_after`, behind the decoder, adds the new tokens to the record, stores what left as blocks, and
   hands the lock on. It runs where a forward raises, too. An interrupt, for which PyTorch runs no
   hooks, ends at the wrapper around the decoder's own `forward`, which calls `_interrupted`.
10. The hook behind the head (hooks/next_token.py) lets stored tokens have a say, where that is on.

Forwards that the memory runs for itself, ahead of a search or while it reads a text, come by here,
too. They stand inside `Stepper.alone`, and every hook passes them on.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cmr.config import CMRConfig
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.decoder.adapter import entering_states
from cmr.integration.decoder.adapter_watch import AdapterWatch
from cmr.integration.hooks.asker import Asker
from cmr.integration.hooks.leaving import leave, wait
from cmr.integration.hooks.reading import Reading
from cmr.integration.hooks.replays import Replays
from cmr.integration.hooks.step import Step, goes_on, padding_mask, require_rows, seen_before
from cmr.integration.hooks.token_ids import TokenIds
from cmr.integration.hooks.windows import Windows
from cmr.integration.requests.lock import Turns
from cmr.integration.requests.request import Request, current, new_request, note_last
from cmr.integration.reweave.attention import LayerMemory
from cmr.integration.reweave.plugs import Plugs
from cmr.integration.reweave.scratch import StepScratch
from cmr.integration.window.lasting import lasting
from cmr.integration.window.settling import settle
from cmr.integration.window.window_layer import LocalWindow, WindowLayer, can_adopt, is_windowed


class ForwardHooks:
    """Hooks on the decoder and on the blocks whose states are wanted.

    Attributes:
        step: the forward of the thread that holds the lock; None between forwards.
        reading: what layers read in a forward.
        replays: the steps that are replayed; None: none is.
        attached: whether the hooks are in place.
    """

    def __init__(self, core: Core, config: CMRConfig) -> None:
        self.core, self._config, self._layout = core, config, core.layout
        self._plugs = Plugs(core.adapter)
        self.step: Step | None = None
        self.reading = Reading(core)
        self.replays = Replays(self) if config.graphs else None
        self.attached = False
        self._busy: int | None = None
        self._turns = Turns(self)
        self._names = list(inspect.signature(core.adapter.decoder.forward).parameters)
        # A model of text and more embeds by itself, and gives its decoder no token ids.
        embeds = core.adapter.model.config is not core.adapter.config
        self._ids = TokenIds() if embeds else None
        self._handles: list[Any] = []
        # Not as decorators: those would load the compiler with this module.
        self._begun: Any = torch.compiler.disable(self._begin)

    # An attach does without these: the first forward makes what it needs of them.

    @cached_property
    def adapters(self) -> AdapterWatch:
        """Knows which adapters (LoRA) each session was read with."""
        return AdapterWatch(self.core, self.search_anew)

    @cached_property
    def scratch(self) -> StepScratch:
        """Tensors that a decoding step writes into."""
        return StepScratch()

    @cached_property
    def _windows(self) -> Windows:
        return Windows(self.core, self._config.memory.sinks, self._leaving)

    @cached_property
    def _asker(self) -> Asker:
        return Asker(self.core, self._config.retrieval, self.alone)

    # -- attaching -------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks in place."""
        adapter, layout = self.core.adapter, self._layout
        if self.replays is not None:
            self.replays.attach()
        self._turns.attach(adapter.decoder, self._interrupted, self._again)
        take = self._handles.append
        take(adapter.decoder.register_forward_pre_hook(self._before, with_kwargs=True))
        after = torch.compiler.disable(self._after)
        take(adapter.decoder.register_forward_hook(after, with_kwargs=True, always_call=True))
        for number in sorted({layout.index_layer, *layout.state_layers, *layout.knn_layers}):
            hook = self._note_states(number)
            take(adapter.layers[number].register_forward_pre_hook(hook, with_kwargs=True))
        if self._ids is not None:
            take(adapter.model.register_forward_pre_hook(self._ids.note, with_kwargs=True))
            take(adapter.model.register_forward_hook(self._ids.drop, always_call=True))
        self._plugs.attach(self)
        self.attached = True

    def detach(self) -> None:
        """Take the hooks and marks away."""
        self.attached = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._plugs.detach(self)
        self._turns.detach()
        if self.replays is not None:
            self.replays.detach()
        self._end()  # where a hook of somebody's detaches in the middle of a forward
        self.step = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Forwards inside are the model's own: nothing is captured or recalled."""
        # Nobody else runs one meanwhile: the lock is held. What is put back belongs to holding it,
        # so that it is put back wherever an interrupt comes.
        with self.core.lock as hold:
            before, step = self._busy, self.step

            def after() -> None:
                self._busy, self.step = before, step

            hold.after = after
            # The thread that is busy: a forward of another one that comes meanwhile waits.
            self._busy, self.step = threading.get_ident(), None
            yield

    @property
    def busy(self) -> bool:
        """Whether the forward under way here is one that the memory makes for itself."""
        return self._busy == threading.get_ident()

    def search_anew(self, sessions: set[int] | None = None) -> None:
        """Let texts of these sessions that go on search at their next step; None: all texts."""
        for record in list(self.core.records):
            if sessions is None or sessions & set(record.sessions):
                record.search.forget()
        self._asker.forget()

    # -- what the attention plugs ask ------------------------------------------------------------

    def memory_for(self, layer: int) -> LayerMemory | None:
        """What block `layer` reads in this forward."""
        step = self.step
        if step is not None and step.ready is not None:
            return step.ready.get(layer)
        if step is None or step.recall is None:
            return None
        return self.reading.of(step, step.recall, layer)

    # -- in front of the decoder -----------------------------------------------------------------

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
        self._asker.first.drop()
        self.core.timing.begin()
        if self.core.answers.on and current(self.core) is None:
            self.core.answers.begin()
        try:
            return self._begin_step(decoder, args, kwargs, compiled)
        except BaseException:
            self.core.timing.end(call=current(self.core) is None)
            self._end()
            raise

    def _begin_step(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], compiled: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        core = self.core
        kwargs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        owner = self._owner(kwargs.get("past_key_values"))
        request = current(core) or new_request(core, named=owner is not None)
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        if self._ids is not None:
            ids = self._ids.take(ids, embeds)
        if not request.active:
            return None
        self._plugs.require_as_attached()
        require_rows(kwargs)
        inputs = ids if ids is not None else embeds
        if inputs is None:
            return None
        batch, tokens = inputs.shape[:2]
        mask = padding_mask(kwargs)
        cache = kwargs.get("past_key_values")
        if tokens > 1 or cache is None or can_adopt(cache):  # no step of a text that goes on
            core.identity.require()
        record = self._record(request, kwargs, mask, batch)
        cache = kwargs.get("past_key_values")
        layer = cache.layers[0] if is_windowed(cache) else None  # type: ignore[union-attr]
        seen = seen_before(cache, kwargs.get("cache_position")) if layer is None else layer.seen
        token_ids = ids if ids is not None else inputs.new_zeros((batch, tokens)).long()
        sessions = self._windows.readers(request, record, cache, owner, batch)
        step = Step(record, sessions, token_ids, token_ids, seen=seen)
        mask = step.look(kwargs, mask, core.config.reweave.sink_guard)
        if not core.adapter.has_rotary:  # its table of positions ends, its text does not
            most = core.adapter.max_positions - 1
            kwargs["position_ids"] = step.position_ids.clamp(max=most)
        # A mask that was prepared for the layers already is left as it is.
        plain = mask is not None or kwargs.get("attention_mask") is None
        if layer is not None and layer.owner.padded is not None and plain:
            kwargs["attention_mask"] = layer.visible(mask, tokens)
        step.goes_on, step.told = goes_on(record, request, tokens), request.last
        asked = kwargs.get("output_attentions")
        step.weights = bool(core.adapter.config.output_attentions if asked is None else asked)
        # Looked at here, and not by a call: most models never have an adapter.
        watch = self.adapters
        if watch.ever or "peft_config" in watch.model.__dict__:
            watch.check(sessions)
        if request.recalls:
            with core.failures.of("search", step.search.drop):
                step.recall = self._asker.recalled(step, request, decoder, kwargs)
            if record is not None and request.inputs is not None:
                record.search.asked_for = weakref.ref(request)
        # Compiled, what leaves on the way is another graph each time; on a GPU all leave at once.
        if layer is not None:
            waits = compiled or core.adapter.input_device.type != "cpu"
            layer.owner.deferred = waits and record is not None
        if self.replays is not None:
            step.fixed = self.replays.prepare(step, request, kwargs, compiled)
        if step.fixed is None:
            self.reading.prepare(step, cache, compiled)
        self.step = step
        self._asker.first.take(compiled)
        return (), kwargs

    def _owner(self, cache: Any) -> LocalWindow | None:
        """What the layers of a cache share whose window is this memory's; None for others."""
        layers = getattr(cache, "layers", None)
        if not layers or not isinstance(layers[0], WindowLayer):
            return None
        owner = layers[0].owner
        return owner if owner.on_leave == self._leaving else None

    def _record(
        self, request: Request, kwargs: dict[str, Any], mask: torch.Tensor | None, batch: int
    ) -> WindowRecord | None:
        """The record of the cache of a forward; an empty dynamic cache becomes a bounded one."""
        # A record tells another story where the cache was used while the memory was paused, or when
        # a session of it has ended: such a cache goes on, and what leaves it is not stored.
        cache: Any = kwargs.get("past_key_values")
        owner = self._owner(cache)
        record = None if owner is None else owner.record
        if record is not None:
            same = len(record.sessions) == batch and record.seen == cache.layers[0].seen
            # Where nothing was written or forgotten since the last step, no session has ended.
            store = self.core.ring.ledger.changes, self.core.forgotten
            alive = record.search.held == store or self.core.table.alive(record.sessions)
            if same and alive:
                if request.names is not None:
                    self._windows.require_own(request, record)
                return record
        return self._windows.begin(request, kwargs, mask, batch)

    # -- while the decoder runs ------------------------------------------------------------------

    def _note_states(self, number: int) -> Any:
        """A hook in front of a block: notes the states that enter it, where they are wanted."""
        indexed = number == self._layout.index_layer
        stored = number in self._layout.state_layers
        compared = number in self._layout.knn_layers

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            step = self.step
            if step is None:
                return
            states = entering_states(args, kwargs).detach()
            if indexed:
                step.index = states
            if stored:
                step.states[number] = states
            if compared and (step.recall is not None or step.ready is not None):
                step.entering[number] = states

        return hook

    def _leaving(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        # A block holds all layers: it is stored behind the decoder, when each has let go of it.
        if self.step is not None:
            self.step.leaving[layer] = (keys, values)

    # -- behind the decoder ----------------------------------------------------------------------

    def _again(self, error: Exception) -> bool:
        return not self.busy and self.reading.again(self.step, error)

    def _end(self) -> None:
        self._asker.first.drop()
        self._turns.end()

    def _interrupted(self) -> None:
        if not self.busy:
            self._end()

    def _after(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self.busy or not self._turns.under_way:  # it could not even begin
            return
        # Where the decoder raised there is no output: nothing is noted, and the lock handed on.
        try:
            if self.step is not None:
                self._finish(self.step, kwargs, output)
        finally:
            if self.core.timing.on or self.core.answers.on:
                self._tell(args, kwargs, output)
            self._end()

    def _tell(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Tell whoever watches of a forward that is over."""
        inputs = kwargs.get("input_ids", args[0] if args else None)
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        rows, tokens = (0, 0) if inputs is None else inputs.shape[:2]
        # One token of a loop of somebody's own is no request: its prompt was.
        outside = current(self.core) is None
        alone = outside and tokens != 1
        self.core.timing.end(0 if output is None else rows * tokens, tokens == 1, alone)
        if outside:
            self.core.answers.over(alone and output is not None)

    def _finish(self, step: Step, kwargs: dict[str, Any], output: Any) -> None:
        """Take note of what a forward gave, and store what left its window."""
        record, step.before = step.record, None
        # A compiled forward kept what leaves: dropping columns would have been another graph.
        layers = [] if record is None else kwargs["past_key_values"].layers
        if layers and layers[0].owner.deferred:
            layers[0].owner.deferred = False
            with lasting():
                settle(layers)
        if step.index is None or output is None:
            return
        note_last(self.core, step)
        if record is None:
            return
        # Noted before the new tokens are: see `WindowRecord.append`.
        if step.leaving:
            record.let_go(step.leaving)
        if step.index.shape[1] == step.token_ids.shape[1]:
            record.append(**step.columns(reach=self.core.adapter.rotary_varies))
        # What could not be stored is tried again when more leaves, not in every step.
        if record.left and (step.leaving or not record.waits):
            # Blocks outlive this forward, and the mode that it runs in.
            left_out = self.core.failures.of("store", lambda: wait(self.core, record))
            with left_out, self.core.timing.of("store"), lasting():
                leave(self.core, record)
