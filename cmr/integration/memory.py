"""The memory of a model, as users have it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from cmr.config import CMRConfig
from cmr.config.topics import lifetime
from cmr.errors import AttachError, ConfigError
from cmr.integration.absorb import absorb
from cmr.integration.capture.block_writer import Keep
from cmr.integration.capture.rows import Rows
from cmr.integration.change import change
from cmr.integration.conversation import Messages, RememberReport, remember, token_ids
from cmr.integration.core import Core
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.outfit import Outfit
from cmr.integration.first_use import first_use
from cmr.integration.hooks.generation import GenerationPlug, finish
from cmr.integration.hooks.replays import MOST
from cmr.integration.hooks.residual import ResidualReader
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.memory_upkeep import MemoryUpkeep
from cmr.integration.progress import told
from cmr.integration.reader import Reader, ReadReport
from cmr.integration.requests.request import LastForward, new_request, under_way
from cmr.integration.requests.scope import Opener, Said
from cmr.integration.requests.session import Session

ATTACHED = "_cmr_memory"
"""Attribute of a model that has a memory, and of its decoder, present only while attached."""


def require_free(model: nn.Module) -> None:
    """Raises `AttachError` where a model has a memory already, or another one over its decoder."""
    get: Any = getattr(model, "get_decoder", None)
    if hasattr(model, ATTACHED) or (get is not None and hasattr(get(), ATTACHED)):
        raise AttachError(
            "this model has a memory attached already, or shares its decoder with one that has: "
            "detach() that memory first, as a decoder has one"
        )


class Memory(MemoryUpkeep):
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
        self._core = core = Core(adapter, config, keep, tokenizer)
        self._stepper = Stepper(core, config)
        # The decoder's own hooks first: the others read what they prepare.
        self._plugs: list[Any] = [self._stepper]
        if core.layout.residual:
            self._plugs.append(ResidualReader(core, self._stepper))
        if core.layout.knn_layers:
            self._plugs.append(self._next_token)
        self._plugs.append(GenerationPlug(core, self._stepper))
        # Not the method itself: the forgetter is made when something is first to be forgotten.
        core.keeper.on_expired = lambda sessions: self._forgetter.drop_copies(sessions)
        self._attached = False
        self.reattach()

    @first_use
    def _reader(self) -> Reader:
        return Reader(self._core, self.config, self._stepper)

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Memory:
        self._require_attached()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take every hook away; the model is as it was, bit for bit. Safe to call twice."""
        # The lock lets a forward of another thread end first; it has hooks half through otherwise.
        with self._core.lock:
            if not self._attached:
                return
            self._take_hooks_away()
            self._stepper.forget_everything()
            self._core.prefetcher.close()
            self._core.close()
            # Where it broke off before, it can be called again.
            self._attached = False

    def reattach(self) -> None:
        """Put every hook back after `detach`: what was stored is there still.

        Raises `AttachError`: the model has another memory by now.
        """
        with self._core.lock:
            if self._attached:
                return
            require_free(self._core.adapter.model)
            # Once sessions have names, requests without one are this thread's alone: a server's
            # worker that forgets to say whose request it runs is refused.
            self._core.home = threading.get_ident()
            self._put_hooks()

    def _put_hooks(self) -> None:
        model = self._core.adapter.model
        before = Outfit(model)
        try:
            for part in (model, self._core.adapter.decoder):
                setattr(part, ATTACHED, self)
            # `copy.deepcopy` looks this up on the instance, so no class of anybody's is changed.
            model.__deepcopy__ = self._copied
            for plug in self._plugs:
                plug.attach()
            self._attached = True
        except BaseException:  # all of it, or nothing
            self._attached = False
            try:
                self._take_hooks_away()
            finally:
                before.put_back()
            raise

    def _take_hooks_away(self) -> None:
        model = self._core.adapter.model
        # The last one in place comes off first, as each wraps what stood there before it.
        for plug in reversed(self._plugs):
            plug.detach()
        vars(model).pop("__deepcopy__", None)
        for part in (model, self._core.adapter.decoder):
            vars(part).pop(ATTACHED, None)

    def _copied(self, memo: dict[int, Any]) -> Any:
        """A copy of the model as it is without a memory; the memory stays with the model.

        Raises `AttachError`: inside of a forward.
        """
        with self._core.lock:
            if self._stepper.under_way:
                raise AttachError("copy.deepcopy: a model between two forwards expected, got one "
                                  "in the middle of a forward")  # fmt: skip
            # Copying follows the hooks to the memory and would copy all that is stored.
            try:
                self._take_hooks_away()
                return copy.deepcopy(self._core.adapter.model, memo)
            finally:
                self._take_hooks_away()  # where it broke off before
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
            self.config = change(self._core, settings)

    def warm_up(self, *rows: int) -> int:
        """Record the decoding steps of batches of so many rows, ahead of the first request.

        With `graphs=True` alone. Kernels are compiled on the way. A step that recalls more blocks
        than the settings name, or of another kind of input, is recorded anew when it comes.

        Args:
            *rows: numbers of rows, 1 or more each, 8 of them at most.

        Returns:
            How many had to be recorded.

        Raises:
            ConfigError: the memory was attached without graphs, or a number is none of these.
            AttachError: the memory is not attached, or the model cannot be replayed as it is now:
                it is being trained, hooks of others stand in its layers, and the like.
        """
        self._require_attached()
        replays = self._stepper.replays
        if replays is None:
            raise ConfigError("warm_up: a memory with graphs=True expected, got one without")
        wrong = [n for n in rows if type(n) is not int or n < 1]
        if wrong or not 0 < len({*rows}) <= MOST:
            raise ConfigError(f"warm_up: 1 to {MOST} numbers of rows expected, got {list(rows)}")
        with self._core.lock:
            return sum([replays.warm_up(n) for n in dict.fromkeys(rows)])

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
            ModelMismatchError: the model has other weights than what is stored was computed with.
            NonFiniteStateError: what the model made of a window is not finite; nothing of that
                window is stored, of any row, and the windows before it are.
        """
        self._require_attached()
        core = self._core
        # All that can be wrong is found before the first token is read, so nothing is half stored.
        core.adapter.require_unmoved()
        rows = Rows.pack(input_ids, attention_mask, core.adapter.config.vocab_size, keep)
        request = new_request(core, named=sessions is not None)
        with core.lock:
            core.identity.require()
            numbers = core.sessions_to_write(request, sessions, len(rows.lengths))
            self._stepper.adapters.check(numbers)
        with under_way(core, request), told(progress, sum(rows.lengths), "reading") as show:
            return self._reader.read(rows, numbers, show, recall)

    def _remember(self, messages: Messages) -> RememberReport:
        """See `Session.remember`, by whose call it is said whose conversation it is."""
        self._require_attached()
        core = self._core
        core.adapter.require_unmoved()
        ids = token_ids(core, messages, self.tokenizer)
        request = new_request(core)
        with core.lock:
            core.identity.require()
            (session,) = core.sessions_to_write(request, None, 1)
            self._stepper.adapters.check([session])
        with under_way(core, request):
            return remember(core, self._reader, session, ids)

    def _finish(self, last: LastForward, rows: Sequence[int]) -> int:
        return finish(self._core, last, rows)

    def absorb(self, cache: DynamicCache) -> int:
        """Let what a cache still holds become memory now, as if it had left its window.

        With the first tokens, which serve as attention sinks, where nothing has left the cache yet;
        else these are not stored. Neither are what the chat template puts around what was said,
        its system prompt, where a tokenizer was given, nor what fills rows that ended early. The
        text is over by that: nothing that comes later into this cache is stored.

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
            TypeError, SessionNameError: for what is no name.
            ValueError: for one session too many (`ConfigError`), or a session that exists and is
                not as `ephemeral` says.
        """
        self._require_attached()
        if not names:
            raise ValueError("session() needs at least one name")
        # Names and times are looked at before any session is made.
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
        # What cannot be is refused here, not at the first forward inside.
        self._core.retriever_with(settings)
        said = Said(settings=dict(settings), about=(task,))
        return Opener(self._core, said, "memory.retrieval(...)")
