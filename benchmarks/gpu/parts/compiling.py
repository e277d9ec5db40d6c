"""All kernels compiled for the device's architecture, by as many processes as there are cores."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.log import SAID, Run

TINY = ("ring_link.ring_link/16", "score.hybrid_blocks/4x512 of 1024")
ELSEWHERE = "sm_90"
"""Compiled for where the device is none of ours to compile for."""


def begin(run: Run) -> None:
    """Every case as it is shipped: a row each, with the time, registers and spills.

    What was compiled before lies in Triton's cache and takes no time: `cached_before` counts that.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        run.leave_out(["all kernels"], "Triton interprets in this process and cannot compile")
        return
    try:
        from benchmarks.compiled import table
        from benchmarks.compiled.cases import all_cases
    except ImportError as error:
        run.leave_out(["all kernels"], f"not installed: {error.name}")
        return
    target, why = target_of(run.device.kind, table.known_targets())
    names = (list(TINY) if run.tiny else sorted(all_cases()))[run.start :]
    workers = 1 if run.tiny else min(16, os.cpu_count() or 1)
    cached, begun, came = _cached(), time.monotonic(), 0
    head: dict[str, Any] = {"target": target, "target_is": why}
    spilled = []
    for name, made in table.as_they_come([(name, target) for name in names], workers, run.left):
        number, came = run.start + came, came + 1
        if isinstance(made, Exception):
            run.emit(name, "failed", number=number, **head, said=str(made)[:SAID])
            continue
        spills = sum(row["spills"] + row["stack"] for row in made.rows)
        spilled += [name] if spills else []
        run.emit(
            name, "ok", show=bool(spills), number=number, **head, seconds=round(made.seconds, 3),
            kernels=made.rows, spills=spills, said="spills",
        )  # fmt: skip
    run.leave_out(names[came:], "out of time")
    seconds = time.monotonic() - begun
    run.emit(
        "all kernels", "ok", **head, calls=came, spilled=spilled, seconds=round(seconds, 2),
        workers=workers, cached_before=cached,
        said=f"{came} calls for {target} ({why}) in {seconds:.1f} s by {workers} processes, "
        f"{len(spilled)} of them spill",
    )  # fmt: skip


def target_of(kind: str, known: list[str]) -> tuple[str, str]:
    """The architecture to compile for, and what it is to the device."""
    if kind != "cuda":
        return ELSEWHERE, "not this device, which is a CPU"
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        own = str(found.gcnArchName).partition(":")[0]
    else:
        own = f"sm_{found.major}{found.minor}"
    if own in known:
        return own, "this device's"
    family = [name for name in known if name.startswith("sm_")]
    below = [name for name in family if int(name[3:]) <= 10 * found.major + found.minor]
    nearest = max(below or family, key=lambda name: int(name[3:]))
    return nearest, f"the nearest to this device's {own}"


def _cached() -> int:
    """Programs in Triton's cache."""
    folder = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    place = Path(folder)
    return sum(1 for _ in place.iterdir()) if place.is_dir() else 0
