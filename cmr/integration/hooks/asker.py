"""What a forward asks memory, and when: its new tokens ahead of it, the newest while decoding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from cmr.config import RetrievalConfig
from cmr.integration.capture.window import is_windowed
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.decoder.partial_pass import states_entering, stop_before
from cmr.integration.hooks.step import Step
from cmr.integration.requests.request import Request
from cmr.integration.reweave.recall import Recall
from cmr.retrieval import Ask, Choice, Retriever, RollingQuery


class Asker:
    """Searches for the forwards of one model.

    Args:
        core: the memory's store and settings.
        config: how many tokens ask, and how often while decoding.
        alone: forwards inside it are the model's own.
    """

    def __init__(
        self,
        core: Core,
        config: RetrievalConfig,
        alone: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._core, self._alone = core, alone
        self._query_tokens, self._refresh = config.query_tokens, config.refresh
        self._foreign: WeakKeyDictionary[Any, tuple[list[int], Recall | None]]
        self._foreign = WeakKeyDictionary()

    def forget(self) -> None:
        """Let go of what was recalled for caches that have no record."""
        self._foreign.clear()

    def ask(
        self,
        step: Step,
        request: Request,
        decoder: nn.Module,
        kwargs: dict[str, Any],
        new: torch.Tensor | None,
        seen: int,
    ) -> Recall | None:
        """What the layers read in a forward; None when nothing.

        Args:
            step: the forward.
            request: that it belongs to.
            decoder: the decoder, to look ahead with.
            kwargs: the arguments of the forward.
            new: `[batch, tokens]` bool, which new tokens are no padding; None where all are.
            seen: tokens that the cache has seen.
        """
        record = step.record
        tokens = step.token_ids.shape[1]
        cache = kwargs.get("past_key_values")
        if record is None and tokens == 1 and seen and cache in self._foreign:
            sessions, recall = self._foreign[cache]
            if sessions == step.sessions:
                return recall
        if record is not None and record.settings != request.retriever.config:
            if record.settings is not None:
                record.forget_recall()
            record.settings = request.retriever.config
        if record is not None and step.goes_on:
            if not record.due(tokens, self._refresh):
                return record.recall
            choice, asked = self._ask_again(record, request)
        else:
            mask, located = self._asking(step, new)
            last = slice(-self._query_tokens, None)
            states, heads = self._look_ahead(new, decoder, kwargs, request.retriever)
            asked = self._core.asked(
                Ask(
                    states=states[:, last],
                    mask=mask[:, last],
                    sessions=self._core.numbers(step.sessions),
                    token_ids=step.token_ids[:, last],
                    task=request.task,
                    located=located,
                    heads={n: x[:, :, last] for n, x in heads.items()},
                )
            )
            wanted = asked.only_asking() if located else asked
            choice = self._core.search(wanted, request.retriever)
            if record is not None:
                record.located = located
        base = step.position_ids[:, 0]
        if new is not None:  # of the first token that is no padding
            base = step.position_ids.gather(1, new.long().argmax(1, keepdim=True))[:, 0]
        if record is not None:
            base = base - record.reach(base.device)
        with self._alone():
            recall = self._core.recall(choice, base, asked)
        if record is not None:
            record.recall = recall
        elif cache is not None:
            self._foreign[cache] = (step.sessions, recall)
        return recall

    def _ask_again(self, record: WindowRecord, request: Request) -> tuple[Choice, Ask]:
        """A search with the newest tokens of a text that goes on; only new ones are compared."""
        core = self._core
        if record.query is None:
            numbers = core.numbers(record.sessions)
            rows = len(record.sessions)
            record.query = RollingQuery(
                rows, self._query_tokens, core.ring, numbers, record.located, request.task
            )
            record.unasked = self._query_tokens
        tokens = min(record.unasked, self._query_tokens)
        states, ids = record.tail("index", tokens), record.tail("token_ids", tokens)
        mask = record.behind_sinks(states.shape[1])
        if core.template is not None and record.located:
            said = core.template.content(ids)
            mask = said if mask is None else said & mask.to(said.device)
        device = core.ring.device
        record.query.add(
            core.indexed(states.to(device)),
            None if mask is None else mask.to(device),
            ids.to(device),
        )
        record.unasked = 0
        return core.search_again(record.query, request.retriever), record.query.ask()

    def _asking(self, step: Step, new: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
        """`[batch, tokens]` bool: the new tokens that a search asks with.

        Padding and the first token of a text are left out: the latter is the attention sink, whose
        state says nothing about the text and matches other sinks only. Where the tokenizer's chat
        template is known, so is what stands around the user's last words; the second value says
        whether these were found in every row.
        """
        ids = step.token_ids
        content = torch.ones_like(ids, dtype=torch.bool) if new is None else new.clone()
        if ids.shape[1] > 1 and (step.record is None or step.record.seen == 0):
            content &= content.long().cumsum(-1) > 1
        template = self._core.template
        question = None if template is None else template.question(ids)
        if question is None:
            return content, False
        asks = content & question
        return (asks, True) if bool(asks.any(-1).all()) else (content, False)

    def _look_ahead(
        self,
        new: torch.Tensor | None,
        decoder: nn.Module,
        kwargs: dict[str, Any],
        retriever: Retriever,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """States that enter the index layer, from a pass over the layers before it.

        Nothing is captured, recalled or added to the cache.

        Returns:
            `[batch, tokens, hidden]`, and by layer the un-rotated queries `[batch, heads, tokens,
            head_dim]` that the search looks at.
        """
        core, adapter = self._core, self._core.adapter
        cache = kwargs.get("past_key_values")
        layers = cache.layers if is_windowed(cache) else []  # type: ignore[union-attr]
        usable = cache if layers else None
        seen = {**kwargs, "past_key_values": usable, "use_cache": usable is not None}
        seen["output_hidden_states"] = False
        if usable is None:  # the mask that was given also covers what the cache holds
            seen["attention_mask"] = None if new is None else new.long()
        for layer in layers:
            layer.peeking = True
        partial = stop_before(adapter, core.layout.index_layer)
        wanted = retriever.layers
        try:
            with (
                self._alone(),
                torch.no_grad(),
                states_entering(adapter, wanted) as noted,
                partial as ended,
            ):
                decoder(**seen)
        finally:
            for layer in layers:
                layer.peeking = False
        assert ended.states is not None, "the decoder never reached its index layer"
        noted[core.layout.index_layer] = ended.states
        with torch.no_grad():
            heads = {n: adapter.queries(n, noted[n]).to(core.ring.device) for n in wanted}
        return ended.states, heads
