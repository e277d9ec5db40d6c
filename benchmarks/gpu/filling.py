"""A memory with as many tokens as are wanted, of which few were read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cmr
from benchmarks.shared import decoding
from benchmarks.shared.device import Processor
from tests.gpu.inputs import NotHere

SESSION, COPY = "measured", "copy"
ROOM = 8_192
"""Tokens that may come later: nothing has to go for them."""
SHARE = 0.9
"""Of the free memory that a store may take."""


@contextmanager
def filled(
    model: Any, device: Processor, tokens: int, read: int, **settings: Any
) -> Iterator[cmr.Memory]:
    """The model with a memory of at least `tokens`, all of one session, which is open inside.

    `read` tokens are read, then the session is copied and put behind itself until there are enough:
    a search has as much to go through as if all of it had been read, in a fraction of the time.

    Args:
        model: the model.
        device: that it is on.
        tokens: stored in the end; 0: none.
        read: tokens that are read, a multiple of the block's.
        settings: for attach.

    Raises:
        NotHere: the store would not fit into the device's free memory.
    """
    wanted = read
    while wanted < tokens:
        wanted *= 2
    budget = wanted + ROOM
    _require_room(model, device, budget, settings)
    chosen = {**decoding.SETTINGS, **settings, "budget": budget, "session_budget": budget}
    with cmr.attach(model, **chosen) as memory, memory.session(SESSION, create=True):
        if tokens:
            memory.read(decoding.some_text(read, model.config.vocab_size))
            while memory.tokens < tokens:
                memory.fork(SESSION, COPY)
                memory.merge(COPY, SESSION)
        yield memory


def _require_room(model: Any, device: Processor, tokens: int, settings: dict[str, Any]) -> None:
    free = device.free()
    if free is None:
        return
    with cmr.attach(model, **{**decoding.SETTINGS, **settings, "budget": 1024}) as memory:
        needed = memory.stats()["bytes_per_token"] * tokens
    if needed > SHARE * free:
        raise NotHere(
            f"{tokens:,} tokens take {needed / 1e9:.1f} GB of the device, {free / 1e9:.1f} GB free"
        )
