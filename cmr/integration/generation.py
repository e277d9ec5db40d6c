"""`generate`: how many rows its inputs have, and prompts longer than the window."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from cmr.integration.cache import is_windowed
from cmr.integration.core import Core
from cmr.integration.requests.request import Request, current, under_way, within
from cmr.integration.stepper import Stepper


class GenerationPlug:
    """Wraps `generate` of one model instance while attached.

    `generate` repeats its inputs for beams and returned sequences; only it knows how often, and
    rows must never be taken for another session's. Prompts longer than the window are read through
    it in pieces, so that what does not fit becomes memory; only the last piece recalls.

    Args:
        core: the memory's store and settings.
        stepper: the decoder's hooks.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper
        self._handle: Any = None
        self._fed: Any = torch.compiler.disable(self._feed)

    def attach(self) -> None:
        """Put the wrapper and the hook in place."""
        model = self._core.adapter.model
        own = model.generate
        core = self._core

        @functools.wraps(own)
        def generate(inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            first = next((x for x in given if isinstance(x, torch.Tensor)), None)
            with under_way(core, within(core, None if first is None else first.shape[0])):
                return own(inputs, *args, **kwargs)

        self._users = vars(model).get("generate")
        model.generate = generate
        self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    def detach(self) -> None:
        """Take the wrapper and the hook away."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            del self._core.adapter.model.generate
            if self._users is not None:
                self._core.adapter.model.generate = self._users

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
        piece, total = self._core.config.window // 2, ids.shape[1]
        assert is_windowed(cache)
        past = cache.get_seq_length()
        if not past:
            self._begun_anew(request, cache, ids)
        start, recalls = 0, request.recalls
        request.recalls = False
        try:
            while total - start > self._core.config.window:
                stop = start + piece
                with torch.no_grad():
                    self._core.adapter.decoder(
                        input_ids=ids[:, start:stop],
                        attention_mask=None if mask is None else mask[:, : past + stop],
                        position_ids=None if positions is None else positions[:, start:stop],
                        past_key_values=cache,
                        use_cache=True,
                    )
                start = stop
        finally:
            request.recalls = recalls
        kwargs = {**kwargs, "input_ids": ids[:, start:]}
        if positions is not None:
            kwargs["position_ids"] = positions[:, start:]
        if kwargs.get("cache_position") is not None:  # the first releases of transformers 5
            kwargs["cache_position"] = kwargs["cache_position"][start:]
        return args, kwargs

    def _begun_anew(self, request: Request, cache: Any, ids: torch.Tensor) -> None:
        """Keeps a text from being stored twice where its cache was given up on the way.

        So does Phi-3 where a generation grows past `original_max_position_embeddings`.
        """
        record = cache.layers[0].owner.record
        for other in list(request.records):
            if other is not record and other.held:
                record.repeats(other, ids)
