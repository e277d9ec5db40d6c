"""What a GPU did once, recorded, to be done again with a single call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Graph(Protocol):
    """Operations that were recorded with the addresses and numbers they were given.

    Attributes:
        result: what the recorded function gave; `replay` writes over its tensors.
    """

    result: Any

    def replay(self) -> None:
        """Do all of it again."""


class CudaGraph:
    """A `torch.cuda.CUDAGraph` of a function without arguments, which must not wait for the device.

    The function runs once beforehand, so that what is compiled or allocated once is there.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device) -> None:
        here = torch.cuda.current_stream(device)
        beside = torch.cuda.Stream(device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            function()
        here.wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of a server may use the device meanwhile.
        with (
            torch.cuda.device(device),
            torch.cuda.graph(self._graph, capture_error_mode="thread_local"),
        ):
            self.result = function()

    def replay(self) -> None:
        """Launch it on the current stream."""
        self._graph.replay()


record: Callable[[Callable[[], Any], torch.device], Graph] = CudaGraph
"""Records a function; another one stands here where a device is played."""
