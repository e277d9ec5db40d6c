"""The device that is measured: its clock, its graphs, its cache and what it counts.

A GPU is timed by events, so that what counts is its own time and not Python's. A CPU does all of it
too, by the processor's clock: so a benchmark runs anywhere, and its rows say which device it was.
"""

from __future__ import annotations

import gc
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import profiler
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode

from cmr.evaluation.machine import processor

Call = Callable[[], Any]
FLUSHED = 512 << 20
"""Bytes written between two calls, so that a GPU's cache holds nothing of the first one's."""
FLUSHED_ON_A_CPU = 4 << 20
ASKED = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
         "temperature.gpu", "power.draw", "power.limit")  # fmt: skip
"""What `nvidia-smi` is asked; clocks in MHz, watts, degrees Celsius."""


class Captured(NamedTuple):
    """A call that can be repeated.

    Attributes:
        replay: repeats it.
        how: `graph` on a GPU, `call` where it is simply called again.
        results: what the call gave when it was captured, which a graph's replay writes anew; None
            of a call, which gives its results itself.
    """

    replay: Call
    how: str
    results: Any


class Processor:
    """The CPU."""

    kind = "cpu"

    def name(self) -> str:
        """What it is called."""
        return processor()

    def described(self) -> dict[str, Any]:
        """Its properties, for a row."""
        return {"threads": torch.get_num_threads()}

    def synchronise(self) -> None:
        """Waits until what was asked for is done."""

    def healthy(self) -> bool:
        """Whether anything can still be asked of it."""
        return True

    def free(self) -> int | None:
        """Free bytes of its memory; None where it does not matter."""
        return None

    def flush(self) -> None:
        """Puts something else into its cache."""
        torch.zeros(FLUSHED_ON_A_CPU, dtype=torch.uint8)

    def shown(self, name: str) -> AbstractContextManager[object]:
        """What runs inside stands in a profiler under this name; a CPU's has none."""
        return nullcontext()

    def each(self, call: Call, times: int, before: Call | None = None) -> list[float]:
        """Seconds of each of `times` calls one after the other.

        Args:
            call: what is timed.
            times: how often.
            before: called in front of each, and not timed.
        """
        seconds = []
        for _ in range(times):
            if before is not None:
                before()
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        return seconds

    def captured(self, call: Call) -> Captured:
        """The call, ready to be repeated."""
        return Captured(call, "call", None)

    def counted(self, call: Call) -> dict[str, int | None]:
        """What two calls take: `launches` of kernels and `waits` of the host for the device.

        A CPU has neither and counts `operations` of PyTorch instead, views and empty tensors left
        out; the three are always there, None where they are not counted.
        """
        with _Operations() as seen:
            call()
        return {"operations": seen.count, "launches": None, "waits": None}

    def launches(self, call: Call) -> int | None:
        """Kernels, copies and fills that a call puts on a GPU; None where nothing can see them."""
        call()
        return None

    def waits(self, call: Call) -> int | None:
        """How often the host waits for a GPU in a call; None of a CPU, which is the host."""
        call()
        return None


class Gpu(Processor):
    """The current CUDA (or ROCm) device."""

    kind = "cuda"

    def __init__(self) -> None:
        self._other: torch.Tensor | None = None

    def name(self) -> str:
        return str(torch.cuda.get_device_name())

    def described(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        free, total = torch.cuda.mem_get_info()
        return {
            "capability": f"{found.major}.{found.minor}",
            "processors": found.multi_processor_count,
            "memory_gb": round(total / 1e9, 2),
            "free_gb": round(free / 1e9, 2),
            "l2_mb": round(getattr(found, "L2_cache_size", 0) / 1e6, 1),
            "shared_kb": getattr(found, "shared_memory_per_block_optin", 0) // 1024,
            "cuda": torch.version.cuda,
            "rocm": torch.version.hip,
            "devices": torch.cuda.device_count(),
            **asked_of_the_driver(getattr(found, "uuid", None)),
        }

    def synchronise(self) -> None:
        torch.cuda.synchronize()

    def healthy(self) -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:  # after an illegal access every further call fails, in this process
            return False
        torch.cuda.empty_cache()
        return True

    def free(self) -> int | None:
        gc.collect()  # a model or a memory that nobody has any more may hold itself
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])

    def flush(self) -> None:
        if self._other is None:
            size = max(1, min(FLUSHED, torch.cuda.mem_get_info()[0] // 8))
            self._other = torch.empty(size, dtype=torch.uint8, device=self.kind)
        self._other.zero_()

    @contextmanager
    def shown(self, name: str) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()  # where a profiler waits for it
        try:
            with torch.cuda.nvtx.range(name):
                yield
                torch.cuda.synchronize()
        finally:
            torch.cuda.profiler.stop()

    def each(self, call: Call, times: int, before: Call | None = None) -> list[float]:
        marks = []
        for _ in range(times):
            if before is not None:
                before()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in marks]

    def captured(self, call: Call) -> Captured:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles; a capture may not
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        return Captured(graph.replay, "graph", results)

    def counted(self, call: Call) -> dict[str, int | None]:
        return {"operations": None, "launches": self.launches(call), "waits": self.waits(call)}

    def launches(self, call: Call) -> int | None:
        if ProfilerActivity.CUDA not in profiler.supported_activities():
            return None
        with profiler.profile(activities=[ProfilerActivity.CUDA]) as profiled:
            call()
            torch.cuda.synchronize()
        kinds: Sequence[Any] = [event.device_type for event in profiled.events()]
        # None at all: a machine may not let its users profile, and no call launches nothing.
        return sum(kind == torch.autograd.DeviceType.CUDA for kind in kinds) or None

    def waits(self, call: Call) -> int | None:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return sum("called a synchronizing" in str(one.message) for one in said)


def device(kind: str) -> Processor:
    """The device of a kind, `cpu` or `cuda`."""
    return Gpu() if kind == "cuda" else Processor()


def asked_of_the_driver(uuid: object = None) -> dict[str, str]:
    """What `nvidia-smi` says, by its own names; `driver_version` says why where it says nothing."""
    words = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"]
    words += ["-i", f"GPU-{uuid}"] if uuid else []
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
        said = [word.strip() for word in done.stdout.strip().splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return {"driver_version": f"not known: {type(error).__name__} of nvidia-smi"}
    return dict(zip(ASKED, said, strict=False))


class _Operations(TorchDispatchMode):
    """Counts what is more than a view or empty memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func._schema.name.partition("::")[2]
        self.count += not (func.is_view or made.startswith(("empty", "new_empty", "detach")))
        return func(*args, **(kwargs or {}))
