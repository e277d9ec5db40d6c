"""What stands for `torch.cuda` where there is none: events, graphs, streams and what is known."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.shared.device import Gpu

NAME = "NVIDIA H100 80GB HBM3"
FREE, TOTAL = 64 << 30, 80 << 30


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing, "an event that is read has to be timed"
        self.at: float | None = None

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        assert self.at is not None and other.at is not None
        return 1e3 * (other.at - self.at)


class Stream:
    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


class Graph:
    """Replays nothing: what a capture runs has run by then."""

    replays = 0

    def replay(self) -> None:
        type(self).replays += 1


class Fake:
    """A GPU as `benchmarks.shared.device` asks for it.

    Attributes:
        calls: how often what was called.
        broken: whether every call fails from now on.
        refuses: whether a capture fails.
        seen: kernels that a profiler has seen.
        ranges: names of those that were opened.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.broken = self.refuses = False
        self.mode = self.seen = 0
        self.ranges: list[str] = []
        found = SimpleNamespace(
            major=9, minor=0, multi_processor_count=132, L2_cache_size=50 << 20,
            shared_memory_per_block_optin=227 << 10, gcnArchName="gfx942:sramecc+", uuid="0-1",
        )  # fmt: skip
        stream = Stream()
        monkeypatch.setattr(
            torch.profiler, "supported_activities", lambda: {torch.profiler.ProfilerActivity.CUDA}
        )
        monkeypatch.setattr(torch.profiler, "profile", self._profile)
        for name, value in {
            "is_available": lambda: True,
            "synchronize": self._synchronise,
            "empty_cache": lambda: self._noted("empty_cache"),
            "mem_get_info": lambda: (FREE, TOTAL),
            "get_device_properties": lambda number=0: found,
            "get_device_name": lambda: NAME,
            "current_device": lambda: 0,
            "device_count": lambda: 1,
            "Event": Event,
            "Stream": Stream,
            "stream": self._within("stream"),
            "current_stream": lambda: stream,
            "CUDAGraph": Graph,
            "graph": self._within("graph"),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self._set_mode,
            "nvtx": SimpleNamespace(range=self._range),
            "profiler": SimpleNamespace(
                start=lambda: self._noted("start"), stop=lambda: self._noted("stop")
            ),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        self.properties = found

    def waits(self) -> None:
        """What a synchronising operation makes PyTorch say."""
        if self.mode:
            warnings.warn("called a synchronizing CUDA operation (Triggered ...)", stacklevel=1)

    @contextmanager
    def _range(self, name: str) -> Iterator[None]:
        assert self.calls["start"] > self.calls["stop"], "a profiler sees it"
        self.ranges.append(name)
        yield

    def launched(self, kernels: int) -> None:
        """What a profiler sees of kernels."""
        self.seen += kernels

    @contextmanager
    def _profile(self, activities: Any) -> Iterator[Any]:
        before, found = self.seen, SimpleNamespace()
        yield found
        kinds = torch.autograd.DeviceType
        events = [SimpleNamespace(device_type=kinds.CUDA)] * (self.seen - before)
        found.events = lambda: [SimpleNamespace(device_type=kinds.CPU), *events]

    def _set_mode(self, mode: Any) -> None:
        self.mode = mode
        if mode:
            said = "Synchronization debug mode is a prototype feature and does not yet detect all"
            warnings.warn(said, stacklevel=1)

    def _synchronise(self) -> None:
        self._noted("synchronize")
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _noted(self, name: str) -> None:
        self.calls[name] += 1

    def _within(self, name: str) -> Any:
        @contextmanager
        def inside(what: Any) -> Iterator[None]:
            self._noted(name)
            yield
            if name == "graph" and self.refuses:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")

        return inside


class OnTheHost(Gpu):
    """The GPU's clock, graphs and counts, with tensors that are on the CPU."""

    kind = "cpu"
