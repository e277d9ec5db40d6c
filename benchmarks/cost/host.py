"""What the host takes to get a target layer's two launches of a decoding step going.

CPU tensors take the whole way of a GPU's: checks, dispatch, Triton's binding of the arguments, up
to the driver, which is not there. What a driver, and the guard of a device, would take is not in
it. Times are those of the thread, in microseconds a layer, medians over rounds in which three ways
take turns: `known`, launches that were made before, as in a window that lets blocks leave; `grows`,
a window that is one token longer each step, so that a step's first layer is checked and bound;
`first`, where every layer is, as none was before. A row for each version of Triton: the installed
one, and 3.9 where it stands beside it (see CONTRIBUTING.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.compiled.compiler import TRITON, starting
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from cmr.integration.reweave.attention import LayerMemory, parts, weave
from cmr.integration.reweave.held import LayerBlocks
from cmr.integration.reweave.scratch import StepScratch
from cmr.kernels import again

SECOND = Path(sys.prefix) / "triton-3.9"
TARGET = "sm_90"
LAYERS, HEADS, GROUPS, DIM = 23, 32, 8, 128
WINDOW, BLOCK, SLOTS, READ = 516, 32, 64, 8
STEPS, ROUNDS = 32, 7


class Steps:
    """Decoding steps of one row: each layer attends to a window and reads blocks."""

    def __init__(self, steps: int) -> None:
        made = torch.Generator().manual_seed(0)

        def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.randn(shape, generator=made).to(dtype)

        self._query = tensor(1, 1, HEADS, DIM).transpose(1, 2)
        self._windows = [
            (tensor(1, GROUPS, WINDOW + n, DIM), tensor(1, GROUPS, WINDOW + n, DIM))
            for n in range(steps)
        ]
        numbers, table = torch.arange(SLOTS), torch.arange(READ)[None]
        stores = tensor(SLOTS, GROUPS, BLOCK, DIM), tensor(SLOTS, GROUPS, BLOCK, DIM)
        positions = torch.arange(SLOTS * BLOCK).view(SLOTS, BLOCK)
        held = LayerBlocks(*stores, table, numbers[table], numbers, positions)
        wide = torch.float32
        turn = tensor(1, 1, DIM, dtype=wide), tensor(1, 1, DIM, dtype=wide)
        self._memory = LayerMemory(held, torch.zeros(1), None, turn, {})
        self._scratch = StepScratch()

    def run(self, before_layer: Callable[[], None] | None = None) -> float:
        """Microseconds a layer, of all steps; `before_layer` is not in them."""
        spent = 0.0
        for key, value in self._windows:
            for layer in range(LAYERS):
                if before_layer is not None:
                    before_layer()
                begun = time.thread_time()
                into = self._scratch.take(layer, self._query, parts(self._query, key))
                weave(self._query, key, value, None, self._memory,
                      is_causal=False, scale=DIM**-0.5, softcap=None, into=into)  # fmt: skip
                spent += time.thread_time() - begun
        return 1e6 * spent / (LAYERS * len(self._windows))


@torch.inference_mode()
def measured(steps: int, rounds: int) -> dict[str, Any]:
    """Medians by way, and how many launches went to the driver.

    Raises:
        RuntimeError: where there were others than two a layer; no time is reported then.
    """
    made: list[str] = []
    times: dict[str, list[float]] = {"known": [], "grows": [], "first": []}
    with starting(TARGET, lambda compiled, *_: made.append(compiled.name)):
        decoding = Steps(steps)
        for _ in range(rounds + 1):  # the first round compiles
            times["first"].append(decoding.run(again.forget))
            again.forget()
            times["grows"].append(decoding.run())
            times["known"].append(decoding.run())
    layers = 3 * (rounds + 1) * steps * LAYERS
    if len(made) != 2 * layers or made.count("reweave_kernel") != layers:
        raise RuntimeError(f"two launches in each of {layers} layers expected, got {len(made)}")
    found = {way: round(statistics.median(spent[1:]), 1) for way, spent in times.items()}
    return {"triton": TRITON, "target": TARGET, "layers": LAYERS, "us_a_layer": found,
            "of_first": round(found["known"] / found["first"], 3)}  # fmt: skip


def beside(steps: int, rounds: int) -> dict[str, Any]:
    """The same with the version of Triton that stands beside, in a process of its own."""
    words = ["--child", "--steps", str(steps), "--rounds", str(rounds)]
    path = os.pathsep.join([str(SECOND), str(rows.ROOT)])
    done = subprocess.run([sys.executable, "-m", "benchmarks.cost.host", *words], text=True,
                          capture_output=True, cwd=rows.ROOT,
                          env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"measuring with {SECOND.name} failed: {done.stderr[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=whole(), default=STEPS, help="in a round")
    parser.add_argument("--rounds", type=whole(), default=ROUNDS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_threads(1)
    args = parser.parse_args(words)
    found = [measured(args.steps, args.rounds)]
    if args.child:
        print(json.dumps(found[0]))
        return
    if SECOND.is_dir():
        found.append(beside(args.steps, args.rounds))
    for row in found:
        head = rows.conditions(steps=args.steps, rounds=args.rounds)
        rows.append("host", {**head, **row})
        ways = ", ".join(f"{way} {spent}" for way, spent in row["us_a_layer"].items())
        print(f"Triton {row['triton']}: µs a layer: {ways}", flush=True)


if __name__ == "__main__":
    run(main)
