"""The forwards of a model as the rest of a memory sees them: begun, lent to, and looked back at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from cmr.integration.hooks.forward import ForwardHooks
from cmr.integration.hooks.step import Step, padding_mask
from cmr.integration.requests.request import Request, last_here
from cmr.integration.requests.scope import Said, call
from cmr.integration.reweave.recall import Recall


class Stepper(ForwardHooks):
    """The hooks of a decoder, with what others ask of its forwards. Args as for `ForwardHooks`."""

    @property
    def under_way(self) -> bool:
        """Whether a forward is under way in this thread."""
        return self._turns.under_way

    @property
    def last(self) -> Step | None:
        """The last forward of this thread or task; None: there was none, or it was forgotten."""
        return last_here(self.core)

    @contextmanager
    def following(self, bounded: bool = True) -> Iterator[list[DynamicCache]]:
        """Gives the caches that requests inside begin; their sinks are stored, too.

        Not `bounded`: nothing leaves them.
        """
        caches: list[DynamicCache] = []
        with call(self.core, Said(caches=caches, bounded=bounded)):
            yield caches

    def lend(self, recall: Recall, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Let the layers read `recall` until the `alone` around it ends; nothing is captured."""
        self.step = Step(None, [], token_ids, positions, recall)

    def adopt(self, request: Request, kwargs: dict[str, Any]) -> bool:
        """Give the cache of a forward of a request a bounded window where that can be done."""
        with self.core.lock:
            self.core.identity.require()
            mask, batch = padding_mask(kwargs), kwargs["input_ids"].shape[0]
            return self._record(request, kwargs, mask, batch) is not None

    def ask_alone(
        self, request: Request, token_ids: torch.Tensor, sessions: list[int]
    ) -> Recall | None:
        """What a text `[rows, tokens]` would recall; nothing of it is kept or read."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        step = Step(None, sessions, token_ids, positions.expand(len(sessions), -1))
        inputs = {"input_ids": token_ids, "use_cache": False}
        return self._asker.ask(step, request, self.core.adapter.decoder, inputs)

    def forget_everything(self) -> None:
        """Let go of what last forwards have recalled, and of the tensors that steps write into."""
        for last in list(self.core.lasts):
            last.step = None
        self.scratch.clear()
        if self.replays is not None:
            self.replays.clear()

    def forget_recalls(self, sessions: set[int]) -> None:
        """Let go of what was recalled of these sessions, also by last forwards."""
        # A forward that has ended may still hold copies of what its layers read.
        for last in list(self.core.lasts):
            if last.step is not None and sessions & set(last.step.sessions):
                last.step = None
        self.search_anew(sessions)
        if self.replays is not None:
            self.replays.forget()
