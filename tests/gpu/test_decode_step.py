"""A decode step of an attached model: no host sync, few launches, the operations seen to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shared import decoding
from cmr.integration.reweave import recall
from cmr.kernels.dispatch import NAMESPACE
from tests.gpu.checks import allocations

LAUNCHES = 3
"""Launches that memory may cost a target layer in a decode step."""
ONCE = 12
"""Launches and allocations that it may cost all of them together: angles that turn the query."""
STEPS = 3


@pytest.fixture
def started(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, decoding.Decoding]]:
    """A memory with text in it and a prompt that was read; searches come after the steps here.

    Blocks are read in place on a CPU too, where layers would read a copy otherwise.
    """
    if device == "cpu":
        monkeypatch.setattr(recall, "in_place", lambda device: True)
    model = decoding.tiny_model(device, torch.bfloat16, layers=4)
    stored = decoding.some_text(400)
    with (
        torch.inference_mode(),
        decoding.remembering(model, stored, refresh=1000, window=128) as memory,
    ):
        run = decoding.begin(model, decoding.some_text(40, seed=1))
        run.steps(2)  # kernels are compiled, layers have gathered what they read
        yield memory, run


@contextmanager
def no_sync(device: str) -> Iterator[None]:
    """Inside, whatever makes the host wait for the GPU raises."""
    if device != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Seen(TorchDispatchMode):
    """Counts our operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            self.calls[func._schema.name.partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))


def launches(run: decoding.Decoding, device: str) -> int:
    """Kernels that one step launches: by the profiler on a GPU, our operations on a CPU."""
    if device != "cuda":
        with Seen() as seen:
            run.step()
        return sum(seen.calls.values())
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run.step()
        torch.cuda.synchronize()
    kinds = [event.device_type for event in profiled.events()]
    return sum(kind == torch.autograd.DeviceType.CUDA for kind in kinds)


def test_no_host_sync(started: tuple[Any, decoding.Decoding], device: str) -> None:
    memory, run = started
    memory.pause()
    alone = decoding.begin(run.model, decoding.some_text(40, seed=2))
    alone.step()
    try:
        with no_sync(device):
            alone.step()
    except RuntimeError as error:
        pytest.skip(f"the model waits for the device without any memory: {error}")
    memory.resume()
    with no_sync(device):
        run.steps(STEPS)
    assert decoding.gate(memory) > 0, "nothing was read"


def test_the_operations_run(started: tuple[Any, decoding.Decoding], device: str) -> None:
    """Each layer attends locally, then reads the blocks: where they are stored."""
    memory, run = started
    layers = len(memory.stats()["target_layers"])
    with Seen() as seen:
        run.step()
    assert seen.calls["reweave_paged"] == layers
    assert seen.calls["attention_partials"] + seen.calls["attention_with_lse"] == layers


def test_launches_of_a_target_layer(started: tuple[Any, decoding.Decoding], device: str) -> None:
    memory, run = started
    layers = len(memory.stats()["target_layers"])
    reading = launches(run, device)
    memory.pause()
    run.step()
    alone = launches(run, device)
    assert reading > alone, "nothing of ours was launched"
    most = ONCE + LAUNCHES * layers
    assert reading - alone <= most, f"{reading - alone} launches for {layers} layers"


def test_memory_allocates_nothing(started: tuple[Any, decoding.Decoding], device: str) -> None:
    """Layers that read ask the allocator no more often than those of the model alone."""
    memory, run = started

    def asked() -> int:
        before = allocations(device)
        run.step()
        return allocations(device) - before

    reading = asked()
    assert decoding.gate(memory) > 0, "nothing was read"
    memory.pause()
    run.step()
    alone = asked()
    assert reading <= alone + ONCE, f"{reading} allocations a step, {alone} without memory"


def test_steps_repeat_bitwise(device: str) -> None:
    """The same text, memory and prompt give the same logits, bit for bit."""
    model = decoding.tiny_model(device, torch.bfloat16, layers=4)
    found = []
    with torch.inference_mode():
        for _ in range(3):
            with decoding.remembering(model, decoding.some_text(400), window=128):
                found.append(decoding.begin(model, decoding.some_text(40, seed=1)).steps(STEPS))
    assert all(torch.equal(found[0], other) for other in found[1:])
