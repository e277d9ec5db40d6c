"""`generate`: rows of its inputs, long prompts, drafts that are verified, and what it leaves."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from cmr.errors import SessionError
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.decoder.wrapped import Wrapped
from cmr.integration.hooks.leaving import leave_rest
from cmr.integration.hooks.prompts import Prompt, follow, setting_of
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.requests.request import LastForward, Request, current, under_way, within
from cmr.integration.window.window_layer import is_windowed

_NOBODY: AbstractContextManager[None] = nullcontext()


class GenerationPlug:
    """Wraps `generate` of one model instance while attached.

    `generate` repeats its inputs for beams and returned sequences; only it knows how often, and
    rows must never be taken for another session's. Prompts longer than the window are read through
    it in pieces, so that what does not fit becomes memory; only the last piece recalls. It is as
    long as the window, counted from the end, where padded rows end together. Where
    `prefill_chunk_size` is given, the pieces before it are run in parts of that size.

    Assisted decoding checks a draft of several tokens by one forward. Where one token at a time
    would let a block leave the window or search anew between two of them, the later ones would be
    checked against another context than they are said in, and what was not accepted could not be
    taken back. So drafts are cut off there, and a prompt is run without one: the answer is that of
    greedy decoding.

    What a session was sent before is recognised in its prompts, and not stored again. Where all is
    to be remembered, what is still in the window becomes memory once the answer is there, before
    anybody is told that it is.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper
        self._handle: Any = None
        self._wrapped: list[Wrapped] = []
        self._fed: Any = torch.compiler.disable(self._feed)

    def attach(self) -> None:
        """Put the wrappers and the hook in place."""
        model: Any = self._core.adapter.model
        self._wrapped = [
            Wrapped(model, "generate", self._generate),
            Wrapped(model, "_get_candidate_generator", self._drafts),
        ]
        self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    def detach(self) -> None:
        """Take the wrappers and the hook away."""
        # Each step can be done again: a detach that broke half-way is called a second time.
        if self._handle is not None:
            self._handle.remove()
        for wrapped in self._wrapped:
            wrapped.take_away()
        self._handle, self._wrapped = None, []

    def _generate(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        timing, answers = self._core.timing, self._core.answers
        # One that another one calls is a part of it.
        if current(self._core) is not None or self._stepper.busy:
            return self._remembered(own, *args, **kwargs)
        with timing.call() if timing.on else _NOBODY, answers.call() if answers.on else _NOBODY:
            return self._remembered(own, *args, **kwargs)

    def _remembered(
        self, own: Callable[..., Any], inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        core = self._core
        inputs_given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        first = next((x for x in inputs_given if isinstance(x, torch.Tensor)), None)
        # Only here is the number of inputs known: behind this they come as rows of a batch.
        request = within(core, None if first is None else first.shape[0])
        if not request.active or self._stepper.busy:
            with under_way(core, request):
                return own(inputs, *args, **kwargs)
        request.part, args, kwargs = _without_prefill(core.adapter.model, args, kwargs)
        request.prompt = Prompt.of(core.adapter.model, args, kwargs, first)
        cache = kwargs.get("past_key_values")
        if is_windowed(cache):
            with core.lock:
                record = followed(core, cache)
                if record is not None:
                    follow(core, request, record)
        # Whoever takes the caches of requests has them stored in a way of their own.
        if core.config.remember == "left" or request.caches is not None:
            with under_way(core, request):
                return own(inputs, *args, **kwargs)
        request.kept = []
        args, kwargs, told = _told_later(own, args, kwargs)
        with under_way(core, request):
            output = own(inputs, *args, **kwargs)
        self._remember((request.kept or [cache])[-1])
        if told is not None:
            told.tell()
        return output

    def _remember(self, cache: Any) -> None:
        """What is still in the window of a cache becomes memory, where that is followed."""
        with self._core.lock, self._core.failures.of("store"):
            record = followed(self._core, cache)
            if record is not None and self._stepper.attached:
                with self._core.timing.of("store"):
                    leave_rest(self._core, record, cache)

    def _drafts(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        maker = own(*args, **kwargs)
        state = kwargs.get("model_kwargs", {})
        if not getattr(maker, "requires_model_outputs", False):
            maker.get_candidates = self._cut(maker.get_candidates, state)
        return maker

    # -- long prompts ----------------------------------------------------------------------------

    def _before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Feeds all but the end of a long prompt through the window."""
        ids, keep = kwargs.get("input_ids"), kwargs.get("logits_to_keep")
        request = current(self._core)
        if request is None or not request.active or request.inputs is None:
            return None
        if args or ids is None or keep != 1:
            return None
        if self._stepper.busy:
            return None
        if kwargs.get("pixel_values") is not None:  # only the model itself can embed images
            return None
        if ids.shape[1] <= self._core.config.window:
            return None
        return self._fed(request, args, kwargs)

    def _feed(
        self, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._stepper.adopt(request, kwargs):
            return None
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        positions, cache = kwargs.get("position_ids"), kwargs["past_key_values"]
        total, window = ids.shape[1], self._core.config.window
        assert is_windowed(cache)
        past = cache.get_seq_length()
        if not past:
            self._begun_anew(request, cache, ids)
        start, recalls, owner = 0, request.recalls, cache.layers[0].owner
        # Half a window at once: each piece sees as much of the text before it as it brings along.
        ends = list(range(total - window, 0, -max(1, window // 2)))[::-1]
        # Pieces are no questions: the last one asks for the whole prompt.
        request.recalls = False
        try:
            with torch.no_grad():
                while start < total - window:
                    end = next(end for end in ends if end > start)
                    stop = end if request.part is None else min(end, start + request.part)
                    owner.patient = stop < end  # a piece sees all of itself, and then tokens leave
                    self._core.adapter.decoder(
                        input_ids=ids[:, start:stop],
                        attention_mask=None if mask is None else mask[:, : past + stop],
                        position_ids=None if positions is None else positions[:, start:stop],
                        past_key_values=cache,
                        use_cache=True,
                    )
                    start = stop
        finally:
            owner.patient, request.recalls = False, recalls
        kwargs = {**kwargs, "input_ids": ids[:, start:]}
        if positions is not None:
            kwargs["position_ids"] = positions[:, start:]
        if kwargs.get("cache_position") is not None:  # the first releases of transformers 5
            kwargs["cache_position"] = kwargs["cache_position"][start:]
        return args, kwargs

    def _begun_anew(self, request: Request, cache: Any, ids: torch.Tensor) -> None:
        """Keeps a text from being stored twice where its cache was given up on the way."""
        # Phi-3 gives its cache up where a generation grows past `original_max_position_embeddings`.
        record = cache.layers[0].owner.record
        for other in list(request.records):
            if other is not record and other.held:
                record.repeats(other, ids)

    # -- drafts ----------------------------------------------------------------------------------

    def _cut(self, own: Any, state: dict[str, Any]) -> Any:
        begun = False

        def drafts(
            input_ids: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            nonlocal begun
            # A draft may come from the model's own first layers: it is no part of the text.
            with self._stepper.alone():
                ids, logits = own(input_ids, *args, **kwargs)
            # The first releases of transformers 5 have no cache before the prompt was run.
            most = self._most(state.get("past_key_values")) if begun else 0
            begun = True
            request = current(self._core)
            off = request is None or not request.active
            if off or most is None or ids.shape[1] - input_ids.shape[1] <= most:
                return ids, logits
            kept = None if logits is None or not most else logits[:, :most]
            return ids[:, : input_ids.shape[1] + most], kept

        return drafts

    def _most(self, cache: Any) -> int | None:
        """Tokens that a draft may have behind the one that is sure; None: any number."""
        if not is_windowed(cache):
            return None
        layer, refresh = cache.layers[0], self._core.config.retrieval.refresh
        # A block leaves, or a search falls due, in front of the token behind these.
        most = layer.owner.most - layer.keys.shape[2] - 1
        if layer.owner.record is not None:
            most = min(most, refresh - 1 - (layer.owner.record.search.steps + 1) % refresh)
        return max(0, most)


def followed(core: Core, cache: Any) -> WindowRecord | None:
    """The record of a cache whose text a memory knows to its end; None: there is none."""
    if not is_windowed(cache):
        return None
    record: WindowRecord | None = cache.layers[0].owner.record
    if record is None or record not in core.records:
        return None
    same = record.seen == cache.get_seq_length()
    return record if same and core.table.alive(record.sessions) else None


def finish(core: Core, last: LastForward, rows: Sequence[int]) -> int:
    """Store rows of the `generate` under way here by the handle of `last`; see `Session.finish`."""
    request = current(core)
    if request is None or request.last is not last or request.kept is None:
        raise SessionError("finish: inside of a generate of this handle expected, of a memory with "
                           "remember='all'")  # fmt: skip
    with core.lock:
        cache = request.kept[-1] if request.kept else None
        record = followed(core, cache)
        count = 0 if record is None else len(record.sessions)
        if record is None:
            return 0
        if not rows or not all(0 <= row < count for row in rows):
            raise ValueError(f"finish: rows from 0 to {count - 1} expected, got {list(rows)}")
        return leave_rest(core, record, cache, rows=rows)


def _without_prefill(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int | None, tuple[Any, ...], dict[str, Any]]:
    """`prefill_chunk_size`, and the arguments of a `generate` with a bounded cache without it."""
    # Each of its chunks would ask as if it were a prompt, and nobody the whole one.
    given = args[0] if args else kwargs.get("generation_config")
    size = setting_of(model, args, kwargs, "prefill_chunk_size")
    kind = setting_of(model, args, kwargs, "cache_implementation")
    cache = kwargs.get("past_key_values")
    bounded = cache is None or isinstance(cache, DynamicCache)
    bounded = bounded and kwargs.get("use_cache") is not False
    if not bounded or kind not in (None, "dynamic", "dynamic_full"):
        return None, args, kwargs
    if not isinstance(size, int) or size < 1:  # transformers itself says what is wrong with it
        return None, args, kwargs
    if given is not None and given.prefill_chunk_size is not None:
        given = copy.copy(given)
        given.prefill_chunk_size = None
        if args:
            args = (given, *args[1:])
        else:
            kwargs = {**kwargs, "generation_config": given}
    if kwargs.get("prefill_chunk_size") is not None or getattr(
        model.generation_config, "prefill_chunk_size", None
    ):
        kwargs = {**kwargs, "prefill_chunk_size": None}
    return size, args, kwargs


class _ToldLater:
    """A streamer that is told of the end by `tell`, when what was said is remembered."""

    def __init__(self, streamer: Any) -> None:
        self._streamer, self._ended = streamer, False

    def put(self, value: torch.Tensor) -> None:
        """Hands tokens on."""
        self._streamer.put(value)

    def end(self) -> None:
        """The end, by `generate`."""
        self._ended = True

    def tell(self) -> None:
        """Hands the end on, where it has come."""
        if self._ended:
            self._streamer.end()


def _told_later(
    own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], _ToldLater | None]:
    """The arguments of a `generate` with a streamer that is told of the end later, and that one."""
    # Whoever reads from a streamer may ask the next thing as soon as it has ended.
    names = list(inspect.signature(own).parameters)
    at = names.index("streamer") - 1 if "streamer" in names else len(args)
    streamer = args[at] if len(args) > at else kwargs.get("streamer")
    if streamer is None:
        return args, kwargs, None
    told = _ToldLater(streamer)
    if len(args) > at:
        return (*args[:at], told, *args[at + 1 :]), kwargs, told
    return args, {**kwargs, "streamer": told}, told
