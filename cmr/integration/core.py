"""What the hooks, the reader and the public memory share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch

from cmr._fork import renew
from cmr._warning import warn
from cmr.config import CMRConfig
from cmr.errors import AttachError
from cmr.integration.calibration.files import calibration_for
from cmr.integration.calibration.sampled import Metric, sample
from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.capture.block_writer import BlockWriter, Keep
from cmr.integration.capture.leaving_text import LeavingText
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.identity import Identity
from cmr.integration.layout import plan_layout
from cmr.integration.requests.answers import Answers
from cmr.integration.requests.chat_template import Template
from cmr.integration.requests.failures import Failures
from cmr.integration.requests.lock import FairLock
from cmr.integration.requests.request import LastForward, Request, current
from cmr.integration.requests.scope import Said, said_here, settings_of
from cmr.integration.requests.speech import Speech
from cmr.integration.requests.timing import Timing
from cmr.integration.reweave.aside import focus_for
from cmr.integration.reweave.recall import LayerStates, Recall
from cmr.integration.reweave.recomputer import Recomputer
from cmr.integration.reweave.reducer import Reducer
from cmr.integration.reweave.tiered_states import Prefetcher, Recomputed, TieredStates
from cmr.kernels.search.query import weigh
from cmr.kernels.upload import uploaded
from cmr.memory.block_store import BlockStore
from cmr.memory.journal import Journal
from cmr.memory.keeper import Keeper
from cmr.memory.sessions import NO_SESSION, SessionTable
from cmr.retrieval import Ask, Choice, Retriever, RollingQuery, Vocabulary

RECOMPUTED_PASSAGES = 32
"""Passages run through the model again that are kept for the next search."""


class Core:
    """What the hooks, the reader and the public memory share: the store, the search, the settings.

    Attributes:
        calibration: what was measured for the model; None: nothing was, or other settings hold.
        index_digest: tells one index from another; None where states are indexed as they are.
        template: of the tokenizer's chat; None: it has none, or nobody gave one.
        vocabulary: the tokenizer's tokens; None: nobody gave one.
        standing_retriever: the search as it is set for good, for who says nothing else.
        identity: whether the model is the one that what is stored was computed with.
        journal: notes what a change of the store or the sessions is about to overwrite.
        failures: what of it was left out of requests, as it failed.
        timing: tells whoever watches how long the stages of requests take.
        answers: tells whoever steers what each request asked and got.
        lock: held by whoever runs a forward, or looks at the store or changes it.
        records: of the caches in use, which may hold copies of what was recalled.
        lasts: last forwards of threads, tasks and handles, which hold such copies, too.
        tokenizer: of the model, where it was given.
        active: False while paused.
        home: the thread that attached the memory.
        consolidated: the store's clock when it was last tidied up.
        merged: `ledger.changes` when it was last found to hold no copies; -1: never.
        forgotten: counts how often something was forgotten or expired.
        not_finite: tokens that left a window and were not stored, as their row was not finite.
        lost: tokens that left a window and could not be stored, as that failed too often.
        metric: weighs a search of states that are indexed as they are; None: nothing does.
        sampled: whether the model was asked for its metric.
        on_leaving: told each text that is about to go from a window into the store; raises where it
            must not.
        on_forgotten: told the sessions of which something was forgotten, to drop copies of it.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        config: CMRConfig,
        keep: Keep | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.adapter, self.config = adapter, config
        self.template = None if tokenizer is None else Template.of(tokenizer)
        self._keep = keep
        self.timing = Timing()
        self.answers = Answers(lambda n: self.name_of(n) if self.table.alive([n]) else "")
        self.failures = Failures(config.strict, self.timing)
        self.lock = FairLock(self._recover)
        self._forked = False
        renew(self, "_forked", lambda: True)
        measured = calibration_for(adapter, config.retrieval)
        self.layout = layout = plan_layout(adapter, config, measured)
        device = adapter.device(layout.index_layer)
        self.calibration = measured and measured.to(device)
        self.index_digest: str | None = None
        if self.calibration is not None and self.calibration.projection is not None:
            self.index_digest = self.calibration.digest
        # What is stored and whose it is change together, or not at all.
        self.journal = Journal()
        self.table = SessionTable(config.memory.max_sessions, config.memory.ttl, self.journal)
        self.ring = BlockStore(
            slots=layout.recent,
            block_size=config.memory.block_size,
            hidden=layout.width,
            layers=layout.shapes,
            index_dtype=layout.index_dtype,
            device=device,
            lower=layout.lower,
            journal=self.journal,
        )
        self.identity = Identity(adapter, lambda: self.stores, self.warn)
        self.keeper = Keeper(self.ring, layout.policy, self.table)
        self.scorer = BlockScorer(adapter, config, layout.index_layer)
        self.vocabulary = None if tokenizer is None else Vocabulary.of(tokenizer, device)
        self.standing_retriever = Retriever(config.retrieval, measured, vocabulary=self.vocabulary)
        self._bias = config.reweave.bias
        self.focus = focus_for(adapter, config.reweave.focus)
        self.records: WeakSet[WindowRecord] = WeakSet()
        self.lasts: WeakSet[LastForward] = WeakSet()
        self.tokenizer = tokenizer
        self.active = True
        # Requests of the thread that attached may go without a name; see `_require_named`.
        self.home = threading.get_ident()
        self.names_in_use = False
        self._warned: set[str] = set()
        self.metric: Metric | None = None
        self.sampled = False
        self.on_leaving: Callable[[LeavingText], None] | None = None
        self.on_forgotten: Callable[[set[int]], None] | None = None
        self.searches = self.recalls_made = 0
        self.consolidated = self.forgotten = self.not_finite = self.lost = 0
        self.merged = -1

    def _recover(self) -> None:
        """Whoever takes the lock first finishes what an exception has left half-way."""
        # Partial passes run while the lock is held: a hook that is there by now was left behind.
        for drop in list(self.adapter.hooks):
            drop()
        if self._forked:
            self._begin_again()
        elif self.journal.open or self.ring.ledger.unsettled:
            self.journal.recover()

    def _begin_again(self) -> None:
        """The first use in the child of a fork, to which the long-term tier did not come along."""
        devices = {self.ring.device, *(shape.device for shape in self.layout.shapes.values())}
        strange = next((device for device in devices if device.type != "cpu"), None)
        if strange is not None:
            raise AttachError(
                f"a memory on {strange} cannot be used in a process that was forked: "
                "load the model and attach a memory in each process"
            )
        lost = self.ring.begin_again()
        self._forked = False
        if not lost:
            return
        if self.keeper.on_expired is not None:
            self.keeper.on_expired(lost)  # copies of what is gone go, too
        warn(
            f"this process was forked: what {len(lost)} sessions had in the long-term tier is in "
            "the parent alone; save(path) before the fork and load it here to have it in both"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Whoever copies or pickles a model comes here by its hooks: they would copy all of it."""
        raise AttachError(
            "a model with a memory attached cannot be copied or pickled, nor can a memory: "
            "detach() first, attach one to the copy; memory.save(path) keeps what is stored"
        )

    # Made when first asked for: an attach does without, and few memories need all of them.

    @cached_property
    def speech(self) -> Speech | None:
        """Tells what was said in a text from its chat template; None: no template is known."""
        return Speech.of(self.tokenizer, self.template)

    @cached_property
    def writer(self) -> BlockWriter:
        """Stores what leaves a window, or was read."""
        return BlockWriter(self.adapter, self.keeper, self.table, self.indexed, self._keep)

    @cached_property
    def recomputed(self) -> Recomputed:
        """Passages that are run through the model again, as they keep no states."""
        layout, context = self.layout, self.config.memory.recall_context
        recomputer = Recomputer(self.adapter, layout.targets, context, layout.residual)
        return Recomputed(recomputer, self.ring, RECOMPUTED_PASSAGES)

    @cached_property
    def prefetcher(self) -> Prefetcher:
        """Gathers what lies in lower tiers ahead of the layers."""
        return Prefetcher()

    @cached_property
    def reducer(self) -> Reducer:
        """Chooses which tokens are read, where the settings limit how many."""
        return Reducer(self.ring, self.config.reweave)

    # -- sessions --------------------------------------------------------------------------------

    def require(self, said: Said) -> None:
        """Make the sessions that are named where that is said, else hold them to be there.

        Raises `UnknownSessionError` where there is none of a name, and `ValueError` for one session
        too many or one that is not ephemeral as said; none is made then.
        """
        assert said.names is not None
        with self.lock:
            self.names_in_use = True
            with self.journal.change():
                for name in said.names:
                    if not said.create:
                        self.table.require(name)
                    self.table.create(name, *said.terms)

    def sessions_to_write(
        self, request: Request, names: Sequence[str] | None, batch: int
    ) -> list[int]:
        """Session number of each row of a text to read; sessions are made when new."""
        # `names` has a name for each row; None: the request says whose text it is.
        if names is not None:
            if isinstance(names, str):
                raise TypeError(f"sessions: a list of names, one a row, expected, got {names!r}")
            if len(names) != batch:
                raise ValueError(f"sessions: {batch} names expected, one a row, got {len(names)}")
            if len(set(names)) != batch:
                raise ValueError(f"sessions: a name of its own for each row expected, got {names}")
            self.table.check(*names)
            self.names_in_use = True
        chosen = list(names) if names is not None else request.row_names(batch)
        if len(set(chosen)) != batch:
            raise ValueError(
                f"{batch} rows cannot be read into one session at once; read them one by one"
            )
        with self.journal.change():
            return [self.table.create(name) for name in chosen]

    def name_of(self, number: int) -> str:
        """A session's name, empty for a row without one."""
        return "" if number == NO_SESSION else self.table.name_of(number)

    # -- settings of requests --------------------------------------------------------------------

    @property
    def retriever(self) -> Retriever:
        """The search with the settings that hold for a request here and now."""
        request = current(self)
        if request is not None:
            return request.retriever
        return self.retriever_with(settings_of(said_here(self)))

    @retriever.setter
    def retriever(self, retriever: Retriever) -> None:
        self.standing_retriever = retriever

    def retriever_with(self, settings: Mapping[str, Any]) -> Retriever:
        """The search as it is set for good, with some settings of a request, which are checked."""
        standing = self.standing_retriever
        return standing.with_settings(**settings) if settings else standing

    def close(self) -> None:
        """End what searches do in the background."""
        self.standing_retriever.close()

    def warn(self, what: str, message: str) -> None:
        """Warn of something, once for each `what`."""
        if what not in self._warned:
            self._warned.add(what)
            warn(message)

    @property
    def searched_by(self) -> str:
        """What a search is tuned to the model by: 'measured', 'sampled' or 'none'."""
        if self.calibration is not None:
            return "measured"
        return "none" if self.config.retrieval.calibration == "none" else "sampled"

    @property
    def stores(self) -> bool:
        """Whether anything is stored."""
        ledger = self.ring.ledger
        return any(ledger.free(n) < tier.slots for n, tier in enumerate(ledger.tiers))

    # -- the hooks' side -------------------------------------------------------------------------

    def wants_recall(self, sessions: Sequence[int], retriever: Retriever) -> bool:
        """Whether there is anything that these sessions may recall. Host only: no device sync."""
        reads = self.layout.read_layers or self.layout.knn_layers
        if not reads or not retriever.config.blocks:
            return False
        self.keeper.expire()
        return self.ring.has(sessions)

    def numbers(self, sessions: Sequence[int]) -> torch.Tensor:
        """Session numbers as `[rows]` int64 beside the index."""
        return uploaded(torch.tensor(list(sessions)), self.ring.device)

    def indexed(self, states: torch.Tensor) -> torch.Tensor:
        """What is indexed and searched of states `[..., hidden]` at the index layer."""
        return states if self.calibration is None else self.calibration.index(states)

    def weighing(self, retriever: Retriever) -> Metric | None:
        """What weighs the states that a search asks with; None: they are as they are indexed.

        The model's own metric, where they are indexed as they are. The first time it runs the
        decoder, whose hooks must rest.
        """
        config = retriever.config
        # What is weighed are no cosines, which a strategy or a least one may ask for.
        plain = config.strategy != "maxsim" or config.similarity_threshold is not None
        if plain or self.searched_by == "none" or self.index_digest is not None:
            return None
        if not self.sampled:
            # No cached property: its lock, which a fork in another thread would leave locked in
            # the child, is held for as long as the model runs.
            found = sample(self.adapter, self.layout.index_layer)
            self.metric, self.sampled = found and found.to(self.ring.device), True
        return self.metric

    def asked(self, ask: Ask, retriever: Retriever) -> Ask:
        """The same with states as the index is compared with, on its device; see `weighing`."""
        ask, metric = ask.to(self.ring.device), self.weighing(retriever)
        states = self.indexed(ask.states) if metric is None else weigh(ask.states, metric)
        return replace(ask, states=states)

    def search(self, ask: Ask, retriever: Retriever | None = None) -> Choice:
        """Search with what `asked` gives; see `Retriever`. None: as it is set here and now."""
        self.searches += 1
        return (retriever or self.retriever).search(ask, self.ring)

    def search_again(self, query: RollingQuery, retriever: Retriever | None = None) -> Choice:
        """Search with the newest tokens of a text that goes on; None: as it is set here and now."""
        self.identity.require(probe=False)
        self.searches += 1
        return (retriever or self.retriever).search_again(query, self.ring)

    def recall(self, choice: Choice, base: torch.Tensor, ask: Ask) -> Recall | None:
        """What the layers read of a choice; None when no row is to read.

        The decoder's hooks must rest meanwhile: recomputing a block runs the decoder. `base`
        `[batch]` is the position in front of which `positions="layout"` puts the memory, and `ask`
        what was searched.
        """
        layout, reweave, device = self.layout, self.config.reweave, self.ring.device
        again = reweave.reconstruction_method == "recompute"
        # On a GPU the answer costs a wait for the device; a table of nothing reads nothing there.
        asks = device.type == "cpu" or again or layout.store == "tokens"
        if asks and not bool((choice.table >= 0).any()):
            return None
        self.recalls_made += 1
        limited = reweave.max_memory_tokens is not None or reweave.compression_ratio is not None
        recall = Recall(
            choice,
            self._bias,
            adapter=self.adapter,
            ring=self.ring,
            load=self._loader(choice.table, again),
            positions="constant" if layout.residual else reweave.positions,
            base=base.to(device),
            plan=self.reducer.plan(choice, ask) if limited else None,
            guarded=reweave.sink_guard > 0,
        )
        if layout.knn_layers:
            recall.compare(layout.knn_layers, project=layout.residual)
        return recall

    def _loader(self, table: torch.Tensor, again: bool) -> LayerStates | None:
        """Loads keys and values of chosen blocks that are not stored as they are read.

        None where the first tier holds all of them, un-rotated. `again`: they are run through the
        model again, though they are stored.
        """
        ring, layout = self.ring, self.layout
        project = None
        if layout.store == "states" and not layout.residual:
            project = self.adapter.keys_values
        if layout.store != "tokens" and not again:
            # Only where something lies lower is the device asked what was chosen.
            first = ring.ledger.tiers[0].end
            if not ring.ledger.below(0) or not bool((table >= first).any()):
                if project is None:
                    return None
                keys_values, flat = project, table.flatten(1)
                return lambda layer: keys_values(layer, ring.gather(layer, flat)[0][:, 0])
        layers = layout.read_layers.union(layout.knn_layers)
        return TieredStates(ring, self.recomputed, table, self.prefetcher, layers, project, again)
