"""Gathering what lies far away, layer by layer, while earlier layers run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

Stored = tuple[torch.Tensor, torch.Tensor | None]
Gather = Callable[[int], Stored]


class Prefetcher:
    """A thread that gathers ahead. It is made when first needed and ends with `close`.

    Attributes:
        gathered: layers that were gathered ahead.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self.gathered = 0

    def ahead(self, gather: Gather, layers: Iterable[int]) -> Gather:
        """What `gather` gives, begun at once for all layers in the order of their numbers.

        Args:
            gather: gives what is stored of a layer; called in the thread.
            layers: the layers that will be asked for.

        Returns:
            A function like `gather`, which waits where a layer is not there yet and raises what was
            raised there. A layer that is asked for again is gathered anew.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="cmr-prefetch")
        coming: dict[int, Future[Stored]] = {
            layer: self._pool.submit(gather, layer) for layer in sorted(layers)
        }

        def take(layer: int) -> Stored:
            if layer not in coming:
                return gather(layer)
            self.gathered += 1
            return coming.pop(layer).result()

        return take

    def close(self) -> None:
        """End the thread; what was begun is finished first."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
