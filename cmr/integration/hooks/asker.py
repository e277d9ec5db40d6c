"""What a forward asks memory: its new tokens ahead of it, the newest ones while decoding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from cmr.config import RetrievalConfig
from cmr.integration.capture.text_search import TextSearch
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.decoder.partial_pass import states_entering
from cmr.integration.hooks.first_layers import FirstLayers
from cmr.integration.hooks.found import what_was_found
from cmr.integration.hooks.step import Step
from cmr.integration.hooks.training import check_training
from cmr.integration.requests.request import Request
from cmr.integration.reweave.aside import aside_of
from cmr.integration.reweave.recall import Recall, sureness
from cmr.integration.window.lasting import lasting
from cmr.integration.window.window_layer import is_windowed
from cmr.retrieval import Ask, Choice, Retriever, RollingQuery


class Asker:
    """Searches for the forwards of one model; forwards inside `alone` are the model's own.

    Attributes:
        first: the layers that ran ahead of a search, and are not to run again in the forward.
    """

    def __init__(
        self, core: Core, config: RetrievalConfig, alone: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._core, self._alone = core, alone
        layout = core.layout
        self.first = FirstLayers(core.adapter, min(layout.read_layers, default=layout.index_layer))
        self._query_tokens, self._refresh = config.query_tokens, config.refresh
        # Of caches that have no record, such as static ones: they read memory and write none.
        self._unrecorded: WeakKeyDictionary[Any, TextSearch] = WeakKeyDictionary()

    def forget(self) -> None:
        """Let go of what was recalled for caches that have no record."""
        self._unrecorded.clear()

    def recalled(
        self, step: Step, request: Request, decoder: nn.Module, kwargs: dict[str, Any]
    ) -> Recall | None:
        """What the layers read; None when nothing. Searches where that is due."""
        core, search, ledger = self._core, step.search, self._core.ring.ledger
        config, tokens = request.retriever.config, step.token_ids.shape[1]
        if ledger.expires:
            core.keeper.expire()
        store = ledger.changes, core.forgotten
        if not config.blocks or search.held != store:
            # In most steps of a text nothing was stored since it was last found to have something.
            if not core.wants_recall(step.sessions, request.retriever):
                if step.record is not None and step.goes_on:
                    search.due(tokens, self._refresh)  # as if it were alone
                return None
            search.held = store
        if decoder.training:
            check_training(core)
        if request.names is None and len(step.sessions) > 1:
            self._tell_of_rows_without(step)
        if step.record is None:
            cache = kwargs.get("past_key_values")
            if cache is not None:
                search = step.unrecorded = self._unrecorded.setdefault(cache, search)
            # Its states are nobody's: what its prompt recalled is read until the next one.
            if tokens == 1 and step.seen and search.sessions == step.sessions:
                return search.recall
        else:
            search.use(config)
            if step.goes_on and not search.due(tokens, self._refresh):
                return search.recall
        # What is recalled outlives this forward, and the mode that it runs in.
        with lasting():
            return self.ask(step, request, decoder, kwargs)

    def _tell_of_rows_without(self, step: Step) -> None:
        """Warn where rows that nobody named have no memory beside one that has."""
        held = [self._core.ring.blocks_of(number) > 0 for number in step.sessions]
        if all(held):
            return
        self._core.warn(
            "rows",
            f"row {held.index(True)} of this batch reads memory and row {held.index(False)} has "
            "none: without names row i is session str(i), which no other row reads. To ask about "
            "one text in every row, name its session: memory.session('0').generate(...), or "
            "`with memory.session('0'):`",
        )

    def ask(
        self, step: Step, request: Request, decoder: nn.Module, kwargs: dict[str, Any]
    ) -> Recall | None:
        """Search, and keep what the layers read from now on; None when nothing."""
        record, search, new = step.record, step.search, step.new
        core, timing = self._core, self._core.timing
        with timing.of("search"):
            if record is not None and step.goes_on:
                choice, asked = self._ask_again(record, search, request)
            else:
                choice, asked = self._ask_ahead(step, request, decoder, kwargs)
        base = step.position_ids[:, 0]
        if new is not None:  # of the first token that is no padding
            base = step.position_ids.gather(1, new.long().argmax(1, keepdim=True))[:, 0]
        if record is not None and core.config.reweave.positions != "constant":
            base = base - record.reach(base.device)
        # Passages that keep no states are run through the model again, which must not be captured.
        with self._alone(), timing.of("read"):
            search.recall = core.recall(choice, base, asked)
        if search.recall is not None and timing.on:
            timing.add("found", 0.0)
        if core.answers.on:
            found = what_was_found(core, step.sessions, choice, search.recall)
            core.answers.note(found, request.inputs)
        search.sessions = step.sessions
        return search.recall

    def _ask_ahead(
        self, step: Step, request: Request, decoder: nn.Module, kwargs: dict[str, Any]
    ) -> tuple[Choice, Ask]:
        """A search with all new tokens, whose states come from a pass over the first layers."""
        core, search = self._core, step.search
        mask, located = self._asking(step)
        # A question asks as a whole, however long; of a text nobody knows where one begins.
        last = slice(None) if located else slice(-self._query_tokens, None)
        states, heads = self._look_ahead(step.new, decoder, kwargs, request.retriever)
        ask = Ask(
            states=states[:, last],
            mask=mask[:, last],
            sessions=core.numbers(step.sessions),
            token_ids=step.token_ids[:, last],
            task=request.task,
            located=located,
            heads={n: x[:, :, last] for n, x in heads.items()},
        )
        with self._alone():
            asked = core.asked(ask, request.retriever)
        if located and core.vocabulary is not None:
            assert asked.token_ids is not None
            asked = replace(asked, parts=core.vocabulary.parts(asked.token_ids, asked.mask))
        wanted = asked.only_asking() if located else asked
        search.located, search.query = located, None
        search.question = search.aside = None
        if step.record is None or asked.parts is None:
            return core.search(wanted, request.retriever), asked
        search.question = replace(wanted, heads={})
        search.asked_at = step.record.seen + step.token_ids.shape[1]
        choice = core.search(wanted, request.retriever)
        sure = sureness(choice.certainty)
        aside = aside_of(asked.parts, choice, sure, core.focus)
        # Where nothing loses weight no layer needs a mask; elsewhere the host would have to wait.
        if aside is not None and (aside.device.type != "cpu" or bool(aside.any())):
            search.aside = aside
        return choice, asked

    def _ask_again(
        self, record: WindowRecord, search: TextSearch, request: Request
    ) -> tuple[Choice, Ask]:
        """A search with the newest tokens of a text that goes on; only new ones are compared.

        The question that began it goes on asking beside them, where its parts are known.
        """
        core = self._core
        if search.query is None:
            numbers, rows = core.numbers(record.sessions), len(record.sessions)
            search.query = RollingQuery(
                rows, self._query_tokens, core.ring, numbers, search.located, request.task,
                search.question, request.retriever.narrows,
            )  # fmt: skip
            # It is made of the record's last tokens, whichever of them came since the last search:
            # of those behind the question, where that asks itself.
            behind = (
                self._query_tokens if search.question is None else record.seen - search.asked_at
            )
            search.unasked = max(0, behind)
        tokens = min(search.unasked, self._query_tokens)
        if tokens:
            self._add(record, search, search.query, tokens, request.retriever)
        search.unasked = 0
        return core.search_again(search.query, request.retriever), search.query.ask()

    def _add(
        self,
        record: WindowRecord,
        search: TextSearch,
        query: RollingQuery,
        tokens: int,
        retriever: Retriever,
    ) -> None:
        """Have the last tokens of a record ask, too."""
        core = self._core
        states, ids = record.tail("index", tokens), record.tail("token_ids", tokens)
        mask = record.behind_sinks(states.shape[1])
        if core.template is not None and search.located:
            said = core.template.content(ids)
            mask = said if mask is None else said & mask.to(said.device)
        device = core.ring.device
        with self._alone():
            metric = core.weighing(retriever)
        states, mask = states.to(device), None if mask is None else mask.to(device)
        states = core.indexed(states) if metric is None else states
        query.add(states, mask, ids.to(device), metric)

    def _asking(self, step: Step) -> tuple[torch.Tensor, bool]:
        """`[batch, tokens]` bool: the new tokens that a search asks with.

        Where the tokenizer's chat template is known, what stands around the user's last words is
        left out; the second value says whether these were found in every row.
        """
        ids, new = step.token_ids, step.new
        content = torch.ones_like(ids, dtype=torch.bool) if new is None else new.clone()
        if ids.shape[1] > 1 and (step.record is None or step.record.seen == 0):
            # The first token of a text is the attention sink: its state says nothing about the
            # text, and matches other sinks only.
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
        """States `[batch, tokens, hidden]` that enter the index layer, and the heads' queries.

        They come from a pass over the layers before it, of which nothing is captured, recalled or
        added to the cache. The un-rotated queries are `[batch, heads, tokens, head_dim]` by layer.
        """
        core, adapter = self._core, self._core.adapter
        index_layer = core.layout.index_layer
        cache = kwargs.get("past_key_values")
        layers = cache.layers if is_windowed(cache) else []  # type: ignore[union-attr]
        # A cache of another kind would keep the tokens of this pass, and the forward's again.
        usable = cache if layers else None
        seen = {**kwargs, "past_key_values": usable, "use_cache": usable is not None}
        seen["output_hidden_states"] = False
        if usable is None:  # the mask that was given also covers what the cache holds
            seen["attention_mask"] = None if new is None else new.long()
        # The forward itself will bring these tokens: layers look at them now and keep nothing.
        for layer in layers:
            layer.peeking = True
        wanted = retriever.layers
        partial = states_entering(adapter, {index_layer, *wanted}, stop=index_layer)
        # Without a window of ours the pass is not what the forward will run.
        first = self.first.noted(usable, index_layer, kwargs) if layers else nullcontext()
        try:
            with first, self._alone(), torch.no_grad(), partial as noted:
                decoder(**seen)
        finally:
            for layer in layers:
                layer.peeking, layer.peeked = False, None
        assert index_layer in noted, "the decoder never reached its index layer"
        with torch.no_grad():
            heads = {n: adapter.queries(n, noted[n]).to(core.ring.device) for n in wanted}
        return noted[index_layer], heads
