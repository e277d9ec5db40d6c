"""Which device this is, and what begins every call: an event, a launch, a launch in a graph."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.compiled.roofline import LAUNCH_US
from benchmarks.gpu.log import Job, Run

ROUNDS = 20
LAUNCHES = 200


def begin(run: Run) -> None:
    """The device, and what a launch costs there."""
    run.do([Job("device", lambda: _described(run)), Job("a launch", lambda: launches(run))])


def _described(run: Run) -> dict[str, Any]:
    found = run.device.described()
    told = {"torch": torch.__version__, **found, "backend": run.head["backend"]}
    said = ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)
    return {
        "properties": found,
        "torch": torch.__version__,
        "said": f"{run.head['device_name']}, {said}",
    }


def launches(run: Run) -> dict[str, Any]:
    """Microseconds of nothing between two events, of a small launch for the host, and in a graph.

    Returns:
        events_us: what a measured time has too much of; launch_us: of the host for one small
        operation; graph_us: of one behind another in a graph, which the model of the hardware
        takes to be `assumed_us`.
    """
    device = run.device
    x = torch.zeros(64, device=device.kind)

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    many()
    device.synchronise()
    begun = time.perf_counter()
    many()
    host = time.perf_counter() - begun
    device.synchronise()
    replay, how, _ = device.captured(many)
    found = {
        "events_us": 1e6 * statistics.median(device.each(lambda: None, ROUNDS)),
        "launch_us": 1e6 * host / LAUNCHES,
        "graph_us": 1e6 * statistics.median(device.each(replay, ROUNDS)) / LAUNCHES,
    }
    rounded = {name: round(value, 3) for name, value in found.items()}
    said = f"{rounded['launch_us']:.1f} µs for the host, {rounded['graph_us']:.1f} µs by {how}"
    return {**rounded, "by": how, "assumed_us": LAUNCH_US, "said": said}
