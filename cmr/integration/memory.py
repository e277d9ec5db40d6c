"""The memory of a model, as users have it."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from cmr.config import CMRConfig
from cmr.config.memory import lifetime
from cmr.errors import AttachError
from cmr.integration.capture.absorb import absorb
from cmr.integration.capture.block_writer import Keep
from cmr.integration.capture.reader import Reader, ReadReport, Rows
from cmr.integration.change import change, changed
from cmr.integration.consolidation import ConsolidationReport, consolidate, lift
from cmr.integration.core import Core
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.files.folders import Files
from cmr.integration.forgetter import ForgetReport, Forgetter
from cmr.integration.hooks.generation import GenerationPlug
from cmr.integration.hooks.next_token import NextTokenReader
from cmr.integration.hooks.residual import ResidualReader
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.requests.chat_template import Template
from cmr.integration.requests.request import new_request, under_way
from cmr.integration.requests.scope import Opener, Said
from cmr.integration.requests.session import Session
from cmr.integration.views import Looking
from cmr.memory.copies import fork, merge
from cmr.memory.store import SaveReport

ATTACHED = "_cmr_memory"
"""Attribute of a model that has a memory, present only while attached."""


class Memory(Looking):
    """A memory attached to a model. Made by `cmr.attach`.

    Without session names, row i of a batch is session `str(i)`. A row only ever reads what its own
    session stored.

    Its methods, and forwards of the model, may be called from several threads: one forward runs at
    a time, in the order in which they were asked for, and a long `read`, `save` or `consolidate`
    lets others in between. What is said around a request, by `session`, `retrieval` and `paused`,
    is seen by the thread or task alone that says it.
    """

    def __init__(
        self, adapter: ModelAdapter, config: CMRConfig, tokenizer: Any, keep: Keep | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._core = core = Core(adapter, config, keep, Template.of(tokenizer))
        self._stepper = Stepper(core, config)
        self._forgetter = Forgetter(core, self._stepper)
        self._files = Files(core)
        self._residual = ResidualReader(core, self._stepper)
        self._next_token = NextTokenReader(core, self._stepper)
        self._generation = GenerationPlug(core, self._stepper)
        self._reader = Reader(core, config, self._stepper)
        self._attached = False
        self.reattach()

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Memory:
        self._require_attached()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take every hook away; the model is as it was, bit for bit. Safe to call twice."""
        with self._core.lock:
            if not self._attached:
                return
            self._attached = False
            self._take_hooks_away()
            self._stepper.forget_everything()
            self._core.prefetcher.close()
            self._core.close()

    def reattach(self) -> None:
        """Put every hook back after `detach`: what was stored is there still.

        Raises:
            AttachError: the model has another memory by now.
        """
        with self._core.lock:
            if self._attached:
                return
            model = self._core.adapter.model
            if hasattr(model, ATTACHED):
                raise AttachError(
                    "this model has a memory attached already; detach() that one first"
                )
            self._put_hooks()
            self._core.home = threading.get_ident()
            self._attached = True

    def _put_hooks(self) -> None:
        model = self._core.adapter.model
        self._stepper.attach()
        self._residual.attach()
        self._next_token.attach()
        self._generation.attach()
        setattr(model, ATTACHED, self)
        model.__deepcopy__ = self._copied  # as `copy.deepcopy` looks it up: on the instance

    def _take_hooks_away(self) -> None:
        model = self._core.adapter.model
        del model.__deepcopy__
        delattr(model, ATTACHED)
        self._generation.detach()
        self._next_token.detach()
        self._residual.detach()
        self._stepper.detach()

    def _copied(self, memo: dict[int, Any]) -> Any:
        """A copy of the model as it is without a memory; the memory stays with the model.

        Raises:
            AttachError: inside of a forward.
        """
        with self._core.lock:
            if self._stepper.under_way:
                raise AttachError("copy.deepcopy: a model between two forwards expected, got one "
                                  "in the middle of a forward")  # fmt: skip
            self._take_hooks_away()
            try:
                return copy.deepcopy(self._core.adapter.model, memo)
            finally:
                self._put_hooks()

    @property
    def attached(self) -> bool:
        """Whether the memory is attached to its model."""
        return self._attached

    def pause(self) -> None:
        """Neither capture nor recall until `resume`: the model is exactly itself, for everybody.

        What was begun before goes on as it began. A cache that is used meanwhile goes on
        afterwards, and what leaves it is not stored. `paused` is the same for one's own requests.
        """
        self._require_attached()
        self._core.active = False

    def resume(self) -> None:
        """Go on after `pause`."""
        self._require_attached()
        self._core.active = True

    def paused(self) -> Opener:
        """A context: for the requests inside, and for nobody else, the model is exactly itself.

        Raises:
            AttachError: after `detach`.
            SessionError: on leaving it in another order than entering.
        """
        self._require_attached()
        return Opener(self._core, Said(active=False), "memory.paused()")

    @property
    def active(self) -> bool:
        """Whether forwards capture and recall: attached, and not paused."""
        return self._attached and self._core.active

    def change(self, **settings: Any) -> None:
        """Change settings for good while attached: those that `retrieval` takes, and more.

        What a request says for itself by `retrieval` goes before, and a `generate` that is under
        way ends as it began.

        Args:
            **settings: fields of `RetrievalConfig` as for `retrieval`; `relevance_threshold`, which
                holds when room is made next; `scoring_method`, for what is stored from now on;
                `reconstruction_method`, `max_memory_tokens`, `compression_ratio`.

        Raises:
            ConfigError: a setting is unknown, fixed while attached, or out of its range.
        """
        with self._core.lock:
            self.config = changed(self.config, **settings)
            change(self._core, self.config)

    # -- reading and sessions --------------------------------------------------------------------

    def read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sessions: Sequence[str] | None = None,
        progress: bool | Callable[[int, int], None] = False,
        recall: bool = False,
        keep: torch.Tensor | None = None,
    ) -> ReadReport:
        """Read text of any length into memory, window by window.

        Args:
            input_ids: `[tokens]` or `[batch, tokens]` integer token ids.
            attention_mask: the same shape, 0 for padding on either side; None where there is none.
            sessions: a name for each row; they are made when new. Default: the session of the
                surrounding `session(...)`, else `str(row)`.
            progress: True shows a bar; a function is called with tokens done and tokens in all.
            recall: read while recalling: what is stored of a piece is then what the model thought
                of it with older passages of the session in view.
            keep: bool of the same shape, False for tokens that are read and never stored: neither
                they nor what the model thought of them. What it thinks of the tokens behind them
                may still be coloured by them. None: all may be stored.

        Raises:
            AttachError: after `detach`, or the model was brought to another dtype or device.
            TypeError, ValueError: for ids or masks that cannot be read; nothing is stored then.
        """
        self._require_attached()
        self._core.adapter.require_unmoved()
        vocabulary = self._core.adapter.config.vocab_size
        rows = Rows.pack(input_ids, attention_mask, vocabulary, keep)
        core = self._core
        request = new_request(core, named=sessions is not None)
        with core.lock:
            numbers = core.sessions_to_write(request, sessions, len(rows.lengths))
            self._stepper.adapters.check(numbers)
        with under_way(core, request), _bar(progress, sum(rows.lengths)) as show:
            return self._reader.read(rows, numbers, show, recall)

    def absorb(self, cache: DynamicCache) -> int:
        """Let what a cache still holds become memory now, as if it had left its window.

        With the first tokens, which serve as attention sinks, where nothing has left the cache yet;
        else these are not stored. The text is over by that: nothing that comes later into this
        cache is stored.

        Args:
            cache: `past_key_values` of forwards with this memory attached, begun when empty.

        Returns:
            The number of blocks stored.

        Raises:
            AttachError: after `detach`.
            TypeError: it is no cache that was begun under a memory.
            ValueError: it is another memory's, was absorbed before or used while this memory was
                paused, or a session of it has ended. Nothing is stored then.
        """
        self._require_attached()
        with self._core.lock:
            return absorb(self._core, cache)

    def session(
        self,
        *names: str,
        create: bool = False,
        ephemeral: bool | None = None,
        ttl: float | None = None,
    ) -> Session:
        """A handle of a session: `anna = memory.session("anna"); anna.generate(**inputs)`.

        Also a context, for everything inside that thread or task: `with memory.session("anna"):`.

        Args:
            *names: session names: one for all rows, or one a row.
            create: make sessions that do not exist yet.
            ephemeral: for new sessions: what they store never leaves the first tier and never
                reaches a file; it is dropped instead.
            ttl: seconds after which what they store from now on is forgotten; None: as it is.

        Raises:
            AttachError: after `detach`.
            UnknownSessionError: for a name that does not exist, unless `create` is true.
            TypeError, ValueError: for what is no name, for one session too many, or a session that
                exists and is not as `ephemeral` says.
        """
        self._require_attached()
        if not names:
            raise ValueError("session() needs at least one name")
        self._core.table.check(*names)
        lasts = None if ttl is None else lifetime("ttl", ttl)
        handle = Session(self, names, create, ephemeral, lasts)
        self._core.require(handle.said)
        return handle

    def retrieval(self, task: str | None = None, **settings: Any) -> Opener:
        """A context: other settings of the search for the requests inside: strategy, budget, task.

        Args:
            task: what the requests are about, for the strategy 'task_specific'.
            **settings: fields of `RetrievalConfig` that a search looks at: `strategy`, `blocks`
                (0: nothing is recalled), `neighbours`, `gain`, `ratio`, `threshold`,
                `similarity_threshold`, `criteria_weights`, `context_heads`.

        Raises:
            AttachError: after `detach`.
            ConfigError: a setting is unknown, fixed while attached, or out of its range.
            SessionError: on leaving it in another order than entering.
        """
        self._require_attached()
        self._core.retriever_with(settings)  # what cannot be is refused here
        said = Said(settings=dict(settings), about=(task,))
        return Opener(self._core, said, "memory.retrieval(...)")

    def rename(self, session: str, to: str) -> None:
        """Give a session another name; the new one must be free."""
        with self._core.lock:
            self._core.table.rename(session, to)

    def fork(self, session: str, to: str) -> int:
        """Make session `to` with a copy of all that another one stores; returns blocks copied.

        Raises:
            UnknownSessionError: there is no session of that name.
            ValueError: `to` exists, or there is no room for the copy; nothing is copied then.
        """
        with self._core.lock:
            return fork(self._core.ring, self._core.table, session, to)

    def merge(self, session: str, into: str) -> int:
        """Put one session's text behind another one's and end it; returns the blocks that moved.

        Raises:
            UnknownSessionError: there is no such session.
            ValueError: the two are one, or only one of them is ephemeral.
        """
        with self._core.lock:
            number = self._core.table.require(session)
            moved = merge(self._core.ring, self._core.table, session, into)
            self._forgetter.drop_copies({number})
            return moved

    # -- keeping and forgetting ------------------------------------------------------------------

    def pin(self, ids: Iterable[int] | int, pinned: bool = True) -> None:
        """Let blocks (numbers as `inspect` shows them) never be evicted; `pinned=False` ends it.

        Raises:
            ValueError: a number that no block has, or more than half of a tier would be pinned.
        """
        ledger = self._core.ring.ledger
        with self._core.lock:
            slots = self._forgetter.select(None, ids, None, None, None)
            if pinned:
                ledger.check_pins(slots)
            ledger.pinned[slots] = pinned

    def forget(
        self,
        session: str | None = None,
        *,
        ids: Iterable[int] | int | None = None,
        text: str | Sequence[int] | None = None,
        older_than: float | None = None,
        files: bool = True,
    ) -> ForgetReport:
        """Zero what is stored, wherever it is, and look that it is gone.

        Whole blocks are forgotten: those that fit everything that is given. A session given alone
        ends. What a model thought of text near a forgotten span may have been coloured by it;
        `neighbours` of the span are blocks of their own and can be named by `ids`.

        Args:
            session: name of a session; None: of all.
            ids: numbers of blocks, as `inspect` shows them.
            text: a span of text (a tokenizer must be known) or of token ids: every block that holds
                a part of one of its occurrences.
            older_than: seconds; blocks stored longer ago.
            files: also forget it in the memories that were saved or loaded here, where they still
                are. They are written anew; what was there is overwritten with zeros.

        Raises:
            UnknownSessionError: there is no such session.
            ValueError: nothing is given, or a number that no block has.
            StoreError: a saved memory could not be changed. What is stored here is gone by then.
        """
        if session is None and ids is None and text is None and older_than is None:
            raise ValueError("forget what? Give session, ids, text or older_than; clear() is all")
        ending = (
            [session] if session and ids is None and text is None and older_than is None else []
        )
        with self._files.still():  # a save under way ends first
            with self._core.lock:
                slots = self._forgetter.select(session, ids, text, older_than, self.tokenizer)
                numbers = self._core.ring.ledger.number[slots].tolist()
                ended = {name: self._core.table.find(name) for name in ending}
            report, numbers = self._forgetter.forget(numbers, ended)
            if not files:
                return report
            return replace(report, files=self._files.forget(numbers, list(ended.values()), ending))

    def clear(self, session: str | None = None) -> int:
        """Forget a session, or everything, here and not in files; returns the blocks emptied.

        A cache that such a session is still using goes on, and what leaves it is not stored.

        Raises:
            UnknownSessionError: for a name that does not exist.
        """
        core = self._core
        with self._files.still():
            with core.lock:
                number = None if session is None else core.table.require(session)
                names = self.sessions if session is None else [session]
                numbers = core.ring.ledger.number[core.ring.ledger.slots_of(number)].tolist()
                ending = {name: core.table.find(name) for name in names}
            report, _ = self._forgetter.forget(numbers, ending)
            if session is None:
                with core.lock:
                    if not len(core.ring.ledger.slots_of(None)):
                        core.ring.clear()
        return report.blocks

    def consolidate(self) -> ConsolidationReport:
        """Tidy up: forget what expired, drop near-duplicates, let what is used rise a tier.

        Takes a while for many blocks; others may use the memory meanwhile.
        """
        self._require_attached()
        return consolidate(self._core, self._stepper.alone)

    def lift(self, *sessions: str) -> int:
        """Bring up what these sessions store in lower tiers, for requests that are expected next.

        Every block goes up to where there is room, or where others that were used longest ago can
        sink for it, up to half a tier: those used last first. Which passages a search finds does
        not change by it.

        Args:
            *sessions: names, the most urgent one last.

        Returns:
            How many times a block went up a tier.

        Raises:
            UnknownSessionError: there is no session of that name; nothing is moved then.
        """
        self._require_attached()
        numbers = [self._core.table.require(name) for name in sessions]
        return sum(lift(self._core, number, self._stepper.alone) for number in numbers)

    # -- files -----------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None = None,
        *,
        key: bytes | str | None = None,
    ) -> SaveReport:
        """Save the memory to a folder, all of it or not at all; what was saved there is replaced.

        Saved again to the same folder, only blocks that are new since then are written. Ephemeral
        sessions are left out. Others may use the memory meanwhile: what is saved is what was stored
        when the save began, and who wants to forget waits for its end. A saved memory is raw user
        data: token ids in the clear, and states from which text can be won back. Give a key, or
        guard the folder.

        Args:
            path: a folder: new, empty, or a saved memory.
            sessions: names of the sessions to save; None: all.
            key: encrypts it: 32 bytes, or a passphrase (needs `pip install 'cmr[crypt]'`).

        Raises:
            UnknownSessionError: there is no such session.
            StoreError: it could not be saved; what was there before still is.
        """
        return self._files.save(path, sessions, key, self.tokenizer)

    def load(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None = None,
        *,
        key: bytes | str | None = None,
    ) -> int:
        """Take saved sessions into this memory; returns the blocks loaded.

        Args:
            path: folder of a saved memory.
            sessions: names of the sessions wanted; None: all.
            key: of an encrypted one.

        Raises:
            StoreError: there is none, it is damaged, of a newer format, or the key is wrong.
            ModelMismatchError: another model or tokenizer saved it, or a session was read with
                other adapters than are in effect.
            UnknownSessionError: it has no such session.
            ConfigError: it stores other layers, or there is no room for it.
            ValueError: a session of that name exists here already.
        """
        self._require_attached()
        return self._files.load(path, sessions, key, self.tokenizer)

    def _require_attached(self) -> None:
        if not self._attached:
            raise AttachError("this memory was detached; attach a new one with cmr.attach(model)")


@contextmanager
def _bar(
    progress: bool | Callable[[int, int], None], total: int
) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar for True, the function itself for a function."""
    if not progress:
        yield None
    elif callable(progress):
        yield progress
    else:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit="token", desc="reading") as bar:
            yield lambda done, _: bar.update(done - bar.n)
