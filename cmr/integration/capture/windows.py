"""A window for each cache that begins under a memory, and the record of what is in it."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from cmr.errors import SessionError
from cmr.integration.capture.local_window import Take
from cmr.integration.capture.window import adopt, can_adopt, is_windowed
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.requests.request import Request
from cmr.memory.sessions import NO_SESSION


class Windows:
    """Finds the record of a forward's cache, and gives empty caches a window and a record.

    Args:
        core: the memory's store and settings.
        sinks: first tokens of a cache that never leave it.
        leave: takes what leaves a window; it also tells the caches of this memory from others.
    """

    def __init__(self, core: Core, sinks: int, leave: Take) -> None:
        self._core, self._sinks, self._leave = core, sinks, leave

    def record(
        self, request: Request, kwargs: dict[str, Any], mask: torch.Tensor | None, batch: int
    ) -> WindowRecord | None:
        """The record of the cache of a forward; None where its text cannot become memory.

        An empty dynamic cache becomes a bounded one; one is made where none is given and one is
        used.

        Args:
            request: that the forward belongs to.
            kwargs: the forward's arguments, to which a new cache is added.
            mask: `[batch, tokens]`, 0 for padding on either side; None where there is none.
            batch: rows.

        Raises:
            SessionError: the cache belongs to other sessions than the request.
        """
        cache = kwargs.get("past_key_values")
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self._core.adapter.config, "use_cache", True)
        if cache is None and use_cache:
            cache = kwargs["past_key_values"] = DynamicCache(config=self._core.adapter.config)
        record = self._known(cache, batch)
        if record is not None:
            self._require_own(request, record, batch)
            return record
        if not can_adopt(cache):
            self._tell_of_no_window(cache)
            return None
        padding, behind = [0] * batch, None
        # Padding on the right is text as far as positions go, and is not stored; on the left it
        # moves where a row begins. Each look at a mask waits for the device: none without a 0.
        if mask is not None and not bool(mask.all()):
            padding = mask.long().argmax(dim=-1).tolist()
            behind = mask.shape[1], mask.flip(-1).long().argmax(dim=-1).tolist()
        sessions, writers = self._core.rows(request, batch, create=True)
        # One that was named has ended since the request began: its text must not begin anew.
        if NO_SESSION in sessions:
            return None
        whole = request.caches is not None
        record = WindowRecord(sessions, writers, padding, self._sinks, behind, whole)
        self._core.records.add(record)
        request.records.add(record)
        window = self._core.new_window(padding, whole, request.bounded)
        if request.caches is not None:
            request.caches.append(cache)
        window.record = record
        window.on_leave = self._leave
        window.on_copy = self._core.records.add
        adopt(cache, window)
        return record

    def goes_on(self, cache: object) -> bool:
        """Whether a cache is one whose rows have their sessions already."""
        return is_windowed(cache) and cache.layers[0].owner.on_leave == self._leave  # type: ignore[attr-defined]

    def _require_own(self, request: Request, record: WindowRecord, batch: int) -> None:
        """Raises `SessionError` where a request goes on with a cache of other sessions."""
        if request.names is None:
            return
        numbers = [self._core.table.find(name) for name in request.names]
        # Rows of a cache may have been repeated, chosen or put in another order since.
        if not set(record.sessions) <= set(numbers):
            names = [self._core.name_of(number) for number in record.sessions]
            raise SessionError(
                f"past_key_values: a cache of {list(request.names)} expected, as this request "
                f"says, got one of {names}: begin a cache of its own for each session"
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

    def _known(self, cache: object, batch: int) -> WindowRecord | None:
        """The record of a bounded cache of this memory, None where it tells another story."""
        if not is_windowed(cache):
            return None
        # A cache that was used while the memory was paused, or a session of which has ended, goes
        # on, and what leaves it is not stored.
        owner = cache.layers[0].owner  # type: ignore[attr-defined]
        record = owner.record
        if owner.on_leave != self._leave or record is None:
            return None
        same = len(record.sessions) == batch and record.seen == cache.get_seq_length()  # type: ignore[attr-defined]
        return record if same and self._core.table.alive(record.sessions) else None
