"""Whether what is said in a request may become memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Storing:
    """The `keep` of a server's memory, see `cmr.attach`: all may be stored, but in `nothing`."""

    def __init__(self) -> None:
        # Of a thread: what it runs for one batch says nothing of what another one stores.
        self._off = threading.local()

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens]` bool, of ids that are about to be stored which may be."""
        return torch.full_like(ids, not getattr(self._off, "nothing", False), dtype=torch.bool)

    @contextmanager
    def nothing(self) -> Iterator[None]:
        """Of the requests that this thread runs inside, nothing is stored."""
        self._off.nothing = True
        try:
            yield
        finally:
            self._off.nothing = False
