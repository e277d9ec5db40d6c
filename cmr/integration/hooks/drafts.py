"""Assisted decoding: drafts end before anything happens that would happen between their tokens."""

from __future__ import annotations

import functools
from typing import Any

import torch

from cmr.integration.capture.window import is_windowed
from cmr.integration.core import Core
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.requests.request import current


class DraftPlug:
    """Wraps the maker of drafts of one model instance while attached.

    A draft is checked by one forward. Where one token at a time would let a block leave the window
    or search anew between two of its tokens, the later ones would be checked against another
    context than they are said in, and what was not accepted could not be taken back. So drafts
    are cut off there, and a prompt is run without one: the answer is that of greedy decoding.

    Args:
        core: the memory's store and settings.
        stepper: the decoder's hooks. Drafts that the model makes for itself are its own.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper
        self._users: Any = None

    def attach(self) -> None:
        """Put the wrapper in place."""
        model = self._core.adapter.model
        own = model._get_candidate_generator

        @functools.wraps(own)
        def make(*args: Any, **kwargs: Any) -> Any:
            maker = own(*args, **kwargs)
            state = kwargs.get("model_kwargs", {})
            if not getattr(maker, "requires_model_outputs", False):
                maker.get_candidates = self._cut(maker.get_candidates, state)
            return maker

        self._users = vars(model).get("_get_candidate_generator")
        model._get_candidate_generator = make

    def detach(self) -> None:
        """Take the wrapper away."""
        model = self._core.adapter.model
        del model._get_candidate_generator
        if self._users is not None:
            model._get_candidate_generator = self._users

    def _cut(self, own: Any, state: dict[str, Any]) -> Any:
        begun = False

        def drafts(
            input_ids: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            nonlocal begun
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
        most = layer.owner.room(layer.keys.shape[2]) - 1
        if layer.owner.record is not None:
            most = min(most, refresh - 1 - (layer.owner.record.search.steps + 1) % refresh)
        return max(0, most)
