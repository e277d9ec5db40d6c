"""A window for each cache that begins under a memory, and the record of what is in it."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from cmr.errors import ModelMismatchError, SessionError
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.hooks.prompts import follow
from cmr.integration.requests.request import Request
from cmr.integration.window.local_window import LocalWindow, Take
from cmr.integration.window.window_layer import adopt, can_adopt, is_windowed
from cmr.memory.sessions import NO_SESSION

UNBOUNDED = 1 << 62
"""A window that no text fills."""


class Windows:
    """Gives empty caches a window, whose `leave` takes what leaves it, and a record."""

    def __init__(self, core: Core, sinks: int, leave: Take) -> None:
        self._core, self._sinks, self._leave = core, sinks, leave

    def begin(
        self, request: Request, kwargs: dict[str, Any], mask: torch.Tensor | None, batch: int
    ) -> WindowRecord | None:
        """A record for the cache of a forward; None where its text cannot become memory.

        An empty dynamic cache gets a window; a new one is added to `kwargs` where the forward has
        none. `mask` `[batch, tokens]` is 0 for padding on either side.
        """
        cache = kwargs.get("past_key_values")
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self._core.adapter.config, "use_cache", True)
        if cache is None and use_cache:
            cache = kwargs["past_key_values"] = DynamicCache(config=self._core.adapter.config)
        if not can_adopt(cache):
            self._require_of_this_model(cache)
            self._tell_of_no_window(cache)
            return None
        padding, behind = [0] * batch, None
        # Padding on the right is text as far as positions go, and is not stored; on the left it
        # moves where a row begins. Each look at a mask waits for the device: none without a 0.
        if mask is not None and not bool(mask.all()):
            padding = mask.long().argmax(dim=-1).tolist()
            behind = mask.shape[1], mask.flip(-1).long().argmax(dim=-1).tolist()
        sessions, writers = request.rows(self._core.table, batch, create=True)
        # One that was named has ended since the request began: its text must not begin anew.
        if NO_SESSION in sessions:
            return None
        whole = request.caches is not None or request.kept is not None
        record = WindowRecord(sessions, writers, padding, self._sinks, behind, whole)
        record.turn = self._core.identity.turn
        follow(self._core, request, record)
        self._core.records.add(record)
        request.records.add(record)
        config, adapter = self._core.config, self._core.adapter
        window = LocalWindow(
            adapter,
            window=config.window if request.bounded else UNBOUNDED,
            whole=whole,
            sinks=self._sinks,
            block=config.memory.block_size,
            padding=padding,
        )
        for caches in (request.caches, request.kept):
            if caches is not None:
                caches.append(cache)
        window.record = record
        window.on_leave = self._leave
        window.on_copy = self._core.records.add
        adopt(cache, window)
        return record

    def readers(
        self,
        request: Request,
        record: WindowRecord | None,
        cache: Any,
        owner: LocalWindow | None,
        batch: int,
    ) -> list[int]:
        """Whose memory the rows of a forward read.

        `record` is that of its cache, None where that is not followed, or not any more; `owner` is
        what the cache's layers share where its window is this memory's.
        """
        if record is not None:
            return record.sessions
        if request.names is not None or not is_windowed(cache):
            return request.rows(self._core.table, batch)[0]
        # The text was somebody's: going on without a name it reads its own memory, if there still
        # is one, and never that of the sessions that rows without a name have.
        known = None if owner is None else owner.record
        own = [] if known is None else known.sessions
        alive = [n if self._core.table.alive([n]) else NO_SESSION for n in own]
        return alive if len(own) == batch else [NO_SESSION] * batch

    def require_own(self, request: Request, record: WindowRecord) -> None:
        """Raises `SessionError` where a request goes on with a cache of other sessions."""
        assert request.names is not None
        numbers = [self._core.table.find(name) for name in request.names]
        # Rows of a cache may have been repeated, chosen or put in another order since.
        if not set(record.sessions) <= set(numbers):
            names = [self._core.name_of(number) for number in record.sessions]
            raise SessionError(
                f"past_key_values: a cache of {list(request.names)} expected, as this request "
                f"says, got one of {names}: begin a cache of its own for each session"
            )

    def _require_of_this_model(self, cache: Any) -> None:
        """Raises `ModelMismatchError` for a cache that was begun under a memory of another one."""
        decoder = self._core.adapter.decoder
        if is_windowed(cache) and cache.layers[0].owner.adapter.decoder is not decoder:
            raise ModelMismatchError(
                "past_key_values: a cache of this model expected, got one that was begun by "
                "another model: its keys and values mean nothing here"
            )

    def _tell_of_no_window(self, cache: object) -> None:
        """Warn of a text that is read beside memory and does not become memory itself."""
        if cache is None:
            self._core.warn(
                "use_cache",
                "use_cache=False: memory is read, and nothing of this text becomes memory; leave "
                "use_cache=True, or give the text to memory.read(...)",
            )
        elif not is_windowed(cache):
            self._core.warn(
                "cache",
                f"a {type(cache).__name__} cannot be followed: memory is read, and nothing of this "
                "text becomes memory; use a dynamic cache that was begun under this memory (for "
                "generate: no cache_implementation), or give the text to memory.read(...)",
            )
