"""What is still in the window of a cache becomes memory, as if it had left."""

from __future__ import annotations

from transformers.cache_utils import DynamicCache

from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.hooks.leaving import leave_rest
from cmr.integration.hooks.prompts import own_texts
from cmr.integration.window.window_layer import is_windowed


def absorb(core: Core, cache: DynamicCache) -> int:
    """Store what a cache still holds; see `Memory.absorb`."""
    record = _record_of(core, cache)
    texts = own_texts(core, record) if record.texts is None and record.held else None
    blocks = leave_rest(core, record, cache, texts)
    # The text is over: what comes later into this cache is not stored, and nothing twice.
    owner = cache.layers[0].owner
    owner.record = owner.on_leave = None
    return blocks


def _record_of(core: Core, cache: object) -> WindowRecord:
    """The record of a cache that this memory has followed; raises as `Memory.absorb` says."""
    if not isinstance(cache, DynamicCache) or not is_windowed(cache):
        raise TypeError(
            "cache: past_key_values of a forward with this memory attached expected (a dynamic "
            f"cache that was empty when it began), got {type(cache).__name__}"
        )
    record = cache.layers[0].owner.record
    if record is None or record not in core.records:
        raise ValueError("cache: one that this memory follows expected; this one was absorbed "
                         "already, or belongs to another memory")  # fmt: skip
    if record.seen != cache.get_seq_length():
        raise ValueError(
            f"cache: {record.seen} tokens are known to this memory, the cache has seen "
            f"{cache.get_seq_length()}: it was used while the memory was paused"
        )
    if not core.table.alive(record.sessions):
        raise ValueError("cache: a session of it has ended; nothing can be stored for it")
    return record
