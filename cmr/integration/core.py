"""What the hooks, the reader and the public memory share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch

from cmr._warning import warn
from cmr.config import STATE_METHODS, CMRConfig
from cmr.errors import AttachError, ConfigError
from cmr.integration.calibration.files import calibration_for
from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.capture.block_writer import BlockWriter, Captured, Keep
from cmr.integration.capture.leaving_text import LeavingText
from cmr.integration.capture.local_window import LocalWindow
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.layout import plan_tiers
from cmr.integration.requests.chat_template import Template
from cmr.integration.requests.lock import FairLock
from cmr.integration.requests.request import LastForward, Request, current
from cmr.integration.requests.scope import Said, said_here, settings_of
from cmr.integration.reweave.memory_bias import memory_bias
from cmr.integration.reweave.prefetcher import Prefetcher
from cmr.integration.reweave.recall import LayerStates, Recall
from cmr.integration.reweave.recomputer import Recomputer
from cmr.integration.reweave.reducer import Reducer
from cmr.integration.reweave.tiered_states import Project, Recomputed, TieredStates
from cmr.memory.block_store import BlockStore
from cmr.memory.keeper import Keeper
from cmr.memory.sessions import NO_SESSION, SessionTable
from cmr.retrieval import Ask, Choice, Retriever, RollingQuery
from cmr.retrieval.successors import compared_layers

logger = logging.getLogger("cmr")

UNBOUNDED = 1 << 62
"""A window that no text fills."""
RECOMPUTED_PASSAGES = 32
"""Passages run through the model again that are kept for the next search."""


class Core:
    """The store, the search and the settings as they apply to one model.

    Attributes:
        adapter: the model.
        config: the settings.
        lock: held by whoever runs a forward, or looks at the store or changes it.
        store: `kv`, `states` or `tokens`.
        targets: layers that are stored and may be read.
        read_layers: layers that read.
        knn_layers: layers at which new tokens are compared with stored ones for next-token memory.
        state_layers: layers whose hidden states are stored.
        kv_layers: layers whose keys and values are stored.
        calibration: what was measured for the model; None: nothing was, or other settings hold.
        index_digest: tells one index from another; None where states are indexed as they are.
        index_layer: layer whose states are searched.
        template: of the tokenizer's chats, where one is known.
        ring: the store.
        keeper: makes room in it.
        table: session names.
        records: of the caches in use, which may hold copies of what was recalled.
        lasts: last forwards of threads, tasks and handles, which hold such copies, too.
        active: False while paused.
        home: the thread that attached the memory.
        names_in_use: whether anybody has named a session.
        consolidated: the store's clock when it was last tidied up.
        forgotten: counts how often something was forgotten or expired.
        on_leaving: told each text that is about to go from a window into the store; raises where it
            must not.
        on_forgotten: told the sessions of which something was forgotten, to drop copies of it.

    Raises:
        ConfigError: for settings that do not fit the model.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        config: CMRConfig,
        keep: Keep | None = None,
        template: Template | None = None,
    ) -> None:
        self.adapter, self.config, self.template = adapter, config, template
        self.lock = FairLock()
        memory, reweave = config.memory, config.reweave
        if config.window > adapter.max_positions:
            raise ConfigError(
                f"window: at most this model's {adapter.max_positions} positions expected, "
                f"got {config.window}"
            )
        self.residual = reweave.method in STATE_METHODS
        self.store = "states" if self.residual else adapter.store_kind(memory.store)
        if self.residual and memory.store not in ("auto", "states"):
            raise ConfigError(
                f"method={reweave.method!r} blends hidden states: store 'auto' or 'states' "
                f"expected, got {memory.store!r}"
            )
        measured = calibration_for(adapter, config.retrieval)
        self.targets = adapter.target_layers(
            memory.target_layers or (measured.target_layers if measured else None)
        )
        self.read_layers = self._readers() if reweave.memory_weight != 0 else frozenset()
        self.knn_layers = compared_layers(config.next_token, self.targets, adapter.depth)
        kept = self.targets if self.store != "tokens" else ()
        self.state_layers = kept if self.store == "states" else ()
        self.kv_layers = kept if self.store == "kv" else ()
        self.index_layer = adapter.index_layer(
            measured.index_layer if measured else config.retrieval.index_layer
        )
        width = measured.width(adapter.hidden) if measured else adapter.hidden
        device = adapter.device(self.index_layer)
        self.calibration = measured and measured.to(device)
        self.index_digest: str | None = None
        if self.calibration is not None and self.calibration.projection is not None:
            self.index_digest = self.calibration.digest
        index_dtype = (
            adapter.dtype if memory.index_dtype == "model" else getattr(torch, memory.index_dtype)
        )
        self.table = SessionTable(memory.max_sessions, memory.ttl)
        layers = {n: adapter.layer_shape(n, self.store) for n in kept}
        plan = plan_tiers(memory, layers, width, index_dtype, len(self.targets))
        if self.residual and plan.lower.long_term and not plan.lower.long_term_states:
            raise ConfigError(
                f"long_term_store: 'kv' expected with method={reweave.method!r}, which reads "
                f"stored states, got {memory.long_term_store!r}"
            )
        self.ring = BlockStore(
            slots=plan.recent,
            block_size=memory.block_size,
            hidden=width,
            layers=layers,
            index_dtype=index_dtype,
            device=device,
            lower=plan.lower,
        )
        self.keeper = Keeper(self.ring, plan.policy, self.table)
        self.scorer = BlockScorer(adapter, config, self.index_layer)
        self.writer = BlockWriter(
            adapter,
            self.keeper,
            self.table,
            self.indexed,
            self.kv_layers,
            keep,
        )
        self._retriever = Retriever(config.retrieval, measured)
        self.reducer = Reducer(self.ring, reweave)
        recomputer = Recomputer(adapter, self.targets, memory.recall_context, self.residual)
        self.recomputed = Recomputed(recomputer, self.ring, RECOMPUTED_PASSAGES)
        self.prefetcher = Prefetcher()
        self.records: WeakSet[WindowRecord] = WeakSet()
        self.lasts: WeakSet[LastForward] = WeakSet()
        self.active = True
        self.home = threading.get_ident()
        self.names_in_use = False
        self._warned: set[str] = set()
        self.on_leaving: Callable[[LeavingText], None] | None = None
        self.on_forgotten: Callable[[set[int]], None] | None = None
        self.searches = self.recalls_made = 0
        self.consolidated = self.forgotten = 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Whoever copies or pickles a model comes here by its hooks: they would copy all of it."""
        raise AttachError(
            "a model with a memory attached cannot be copied or pickled, nor can a memory: "
            "detach() first, attach one to the copy; memory.save(path) keeps what is stored"
        )

    @property
    def _again(self) -> bool:
        """Whether what is recalled is run through the model again, though it is stored."""
        return self.config.reweave.reconstruction_method == "recompute"

    def _readers(self) -> frozenset[int]:
        wanted = self.config.reweave.layers
        if wanted is None:
            wanted = self.targets
        missing = sorted(set(wanted) - set(self.targets))
        if missing:
            raise ConfigError(
                f"layers: layers that are captured expected ({list(self.targets)}), "
                f"got {list(wanted)}: {missing} store nothing to read"
            )
        return frozenset(wanted)

    # -- sessions --------------------------------------------------------------------------------

    def rows(
        self, request: Request, batch: int, create: bool = False
    ) -> tuple[list[int], list[int]]:
        """Session number of each row of a forward, and the rows that write.

        Beams and several returned sequences come as groups of rows of one input: they share its
        session, and the first of each group writes. Rows without a name make their sessions when
        they first write; a session that was named and has ended is `NO_SESSION` and stays so.

        Raises:
            ValueError: as many names as rows expected, or one.
        """
        inputs = request.inputs if request.inputs and batch % request.inputs == 0 else batch
        group = batch // inputs
        get = self.table.create if create and request.names is None else self.table.find
        numbers = [get(name) for name in request.row_names(inputs)]
        return [n for n in numbers for _ in range(group)], list(range(0, batch, group))

    def require(self, said: Said) -> None:
        """Make the sessions that are named where that is said, else hold them to be there.

        Raises:
            UnknownSessionError: there is no session of a name; none is made then.
            ValueError: for one session too many, or one that is not ephemeral as said.
        """
        assert said.names is not None
        with self.lock:
            self.names_in_use = True
            if said.create:
                self.table.check_room(said.names)
            for name in said.names:
                if not said.create:
                    self.table.require(name)
            for name in said.names:
                self.table.create(name, *said.terms)

    def sessions_to_write(
        self, request: Request, names: Sequence[str] | None, batch: int
    ) -> list[int]:
        """Session number of each row of a text to read; sessions are made when new.

        Args:
            request: says whose text it is where `names` does not.
            names: a name for each row; None: as the request says.
            batch: rows.
        """
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
        self.table.check_room(chosen)
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
        self._retriever = retriever

    def retriever_with(self, settings: Mapping[str, Any]) -> Retriever:
        """The search as it is set for good, with some settings of a request.

        Raises:
            ConfigError: a setting is unknown, fixed while attached, or out of its range.
        """
        return self._retriever.with_settings(**settings) if settings else self._retriever

    def close(self) -> None:
        """End what searches do in the background."""
        self._retriever.close()

    def warn(self, what: str, message: str) -> None:
        """Warn of something, once for each `what`."""
        if what not in self._warned:
            self._warned.add(what)
            warn(message)

    # -- the hooks' side -------------------------------------------------------------------------

    def new_window(
        self, padding: Sequence[int], whole: bool = False, bounded: bool = True
    ) -> LocalWindow:
        """A local window for rows of that much left padding.

        Args:
            padding: tokens of each row.
            whole: the sinks become memory, too.
            bounded: False: nothing ever leaves it.
        """
        return LocalWindow(
            self.adapter,
            window=self.config.window if bounded else UNBOUNDED,
            whole=whole,
            sinks=self.config.memory.sinks,
            block=self.config.memory.block_size,
            padding=padding,
        )

    def wants_recall(self, sessions: Sequence[int], retriever: Retriever) -> bool:
        """Whether there is anything that these sessions may recall. Host only: no device sync."""
        reads = self.read_layers or self.knn_layers
        if not reads or not retriever.config.blocks:
            return False
        self.keeper.expire()
        return self.ring.has(sessions)

    def numbers(self, sessions: Sequence[int]) -> torch.Tensor:
        """Session numbers as `[rows]` int64 beside the index."""
        return torch.tensor(list(sessions), device=self.ring.device)

    def indexed(self, states: torch.Tensor) -> torch.Tensor:
        """What is indexed and searched of states `[..., hidden]` at the index layer."""
        return states if self.calibration is None else self.calibration.index(states)

    def asked(self, ask: Ask) -> Ask:
        """The same with states as they are indexed, on the index's device.

        Args:
            ask: with states `[batch, tokens, hidden]` as the model has them.
        """
        return replace(ask, states=self.indexed(ask.states)).to(self.ring.device)

    def search(self, ask: Ask, retriever: Retriever | None = None) -> Choice:
        """Search with what `asked` gives; see `Retriever`. None: as it is set here and now."""
        self.searches += 1
        return (retriever or self.retriever).search(ask, self.ring)

    def search_again(self, query: RollingQuery, retriever: Retriever | None = None) -> Choice:
        """Search with the newest tokens of a text that goes on; None: as it is set here and now."""
        self.searches += 1
        return (retriever or self.retriever).search_again(query, self.ring)

    def recall(self, choice: Choice, base: torch.Tensor, ask: Ask) -> Recall | None:
        """What the layers read of a choice; None when no row is to read.

        The decoder's hooks must rest meanwhile: recomputing a block runs the decoder.

        Args:
            choice: the passages.
            base: `[batch]` position in front of which `positions="layout"` puts them.
            ask: what was searched, with states as they are indexed.
        """
        device = self.ring.device
        asks = device.type == "cpu" or self._again or self.store == "tokens"
        if asks and not bool((choice.table >= 0).any()):
            return None  # on a GPU the answer costs a sync; elsewhere nothing is read there either
        self.recalls_made += 1
        self.ring.touch(choice.table)
        recall = Recall(
            choice,
            memory_bias(choice.certainty, self.config.reweave),
            adapter=self.adapter,
            ring=self.ring,
            load=self._loader(choice.table),
            positions="constant" if self.residual else self.config.reweave.positions,
            base=base.to(device),
            plan=self.reducer.plan(choice, ask),
            guarded=self.config.reweave.sink_guard > 0,
        )
        if self.knn_layers:
            recall.compare(self.knn_layers, project=self.residual)
        return recall

    def _loader(self, table: torch.Tensor) -> LayerStates | None:
        """How un-rotated keys and values of the chosen blocks are come by that are not stored."""
        ring, project = self.ring, None
        if self.store == "states" and not self.residual:
            project = self.adapter.keys_values
        if self.store != "tokens" and not self._again:
            # Only where something lies lower is the device asked what was chosen.
            first = ring.ledger.tiers[0].end
            if not ring.ledger.below(0) or not bool((table >= first).any()):
                return None if project is None else self._projected(table.flatten(1), project)
        layers = self.read_layers.union(self.knn_layers)
        return TieredStates(
            ring, self.recomputed, table, self.prefetcher, layers, project, self._again
        )

    def _projected(self, table: torch.Tensor, project: Project) -> LayerStates:
        def load(layer: int) -> tuple[torch.Tensor, torch.Tensor]:
            states, _ = self.ring.gather(layer, table)
            return project(layer, states[:, 0])

        return load

    def leave(
        self,
        record: WindowRecord,
        layers: dict[int, tuple[torch.Tensor, torch.Tensor]],
        finished: bool = False,
    ) -> int:
        """Store what left the window of a cache; the first row of each group writes.

        Args:
            record: of the window.
            layers: rotated keys and values `[batch, heads, tokens, dim]` of what left.
            finished: whether the text ends with it.

        Returns:
            The number of blocks stored.
        """
        tokens = next(iter(layers.values()))[0].shape[2]
        text = LeavingText.pop(record, tokens, self.table, self.writer.kept, finished)
        writers, columns = torch.tensor(record.writers), text.columns
        kept: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {
            n: (layers[n][0][writers], layers[n][1][writers]) for n in self.kv_layers
        }
        for number in self.state_layers:
            kept[number] = (columns[f"state{number}"][:, None], None)
        if self.on_leaving is not None:
            self.on_leaving(text)
        captured = Captured(
            sessions=text.sessions,
            token_ids=columns["token_ids"],
            valid=text.valid,
            index=columns["index"],
            layers=kept,
            rope=columns["rope"],
            reach=columns.get("reach"),
            relevance=text.relevance(self.scorer, self.ring.block_size),
            keep=text.keep,
        )
        return self.writer.write(captured)
