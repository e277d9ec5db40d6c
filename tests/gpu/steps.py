"""What has to hold of the decode steps of an attached model on every device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shared import decoding
from benchmarks.shared.device import device as device_of
from cmr.integration.reweave import recall
from cmr.kernels.dispatch import NAMESPACE
from tests.gpu.checks import allocations
from tests.gpu.inputs import NotHere

LAUNCHES = 3
"""Launches that memory may cost a target layer in a decode step."""
ONCE = 12
"""Launches and allocations that it may cost all of them together: angles that turn the query."""
STEPS = 3


@contextmanager
def in_place(device: str) -> Iterator[None]:
    """Blocks are read where they are stored on a CPU too, where layers would read a copy."""
    before = recall.in_place
    if device == "cpu":
        recall.in_place = lambda device: True
    try:
        yield
    finally:
        recall.in_place = before


@contextmanager
def started(device: str) -> Iterator[tuple[Any, decoding.Decoding]]:
    """A memory with text in it and a prompt that was read; searches come after the steps here."""
    model = decoding.tiny_model(device, torch.bfloat16, layers=4)
    with (
        in_place(device),
        torch.inference_mode(),
        decoding.remembering(model, decoding.some_text(400), refresh=1000, window=128) as memory,
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
        return seen.calls.total()
    found = device_of(device).launches(run.step)
    if found is None:
        raise NotHere("PyTorch's profiler sees no kernels on this machine")
    return found


def no_host_sync(device: str) -> None:
    """The host never waits for the device in a step that reads memory."""
    with started(device) as (memory, run):
        memory.pause()
        alone = decoding.begin(run.model, decoding.some_text(40, seed=2))
        alone.step()
        try:
            with no_sync(device):
                alone.step()
        except RuntimeError as error:
            raise NotHere(f"the model waits for the device without any memory: {error}") from error
        memory.resume()
        with no_sync(device):
            run.steps(STEPS)
        assert decoding.gate(memory) > 0, "nothing was read"


def the_operations_run(device: str) -> None:
    """Each layer attends locally, then reads the blocks: where they are stored."""
    with started(device) as (memory, run):
        layers = len(memory.stats()["target_layers"])
        with Seen() as seen:
            run.step()
        local = seen.calls["attention_partials"] + seen.calls["attention_with_lse"]
        assert seen.calls["reweave_paged"] == local == layers, seen.calls


def launches_of_a_target_layer(device: str) -> None:
    """A target layer costs few launches more than the model's own."""
    with started(device) as (memory, run):
        layers = len(memory.stats()["target_layers"])
        reading = launches(run, device)
        memory.pause()
        run.step()
        alone = launches(run, device)
        assert reading > alone, "nothing of ours was launched"
        most = ONCE + LAUNCHES * layers
        assert reading - alone <= most, f"{reading - alone} launches for {layers} layers"


def memory_allocates_nothing(device: str) -> None:
    """Layers that read ask the allocator no more often than those of the model alone."""
    with started(device) as (memory, run):

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


def steps_repeat_bitwise(device: str) -> None:
    """The same text, memory and prompt give the same logits, bit for bit."""
    model = decoding.tiny_model(device, torch.bfloat16, layers=4)
    found = []
    with torch.inference_mode():
        for _ in range(3):
            with decoding.remembering(model, decoding.some_text(400), window=128):
                found.append(decoding.begin(model, decoding.some_text(40, seed=1)).steps(STEPS))
    assert all(torch.equal(found[0], other) for other in found[1:])


STEP_CHECKS: dict[str, Callable[[str], None]] = {
    "no host sync": no_host_sync,
    "the operations run": the_operations_run,
    "launches of a target layer": launches_of_a_target_layer,
    "memory allocates nothing": memory_allocates_nothing,
    "steps repeat bitwise": steps_repeat_bitwise,
}
