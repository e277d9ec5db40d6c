"""Which addresses of a decoding step stay from step to step, as a captured graph would need.

A tiny random model decodes on a CPU while a layer reads blocks where they are stored, as on a GPU.
Noted are the addresses of what the layer's two launches are given. Nothing is freed meanwhile, so
that no address stays by chance. With --graphs a step runs as `graphs=True` has it recorded on a
GPU, anew each time in the place of a replay: what it reads from outside has to stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.shared import decoding, rows
from benchmarks.shared.command import Parser, run, whole
from cmr.integration.hooks import graph, replays
from cmr.integration.reweave import attention, recall

LAYER, STORED, PROMPT = 2, 800, 40
Addresses = dict[str, int]


@contextmanager
def noting(steps: list[Addresses], kept: list[Any]) -> Iterator[None]:
    """What `LAYER` is given in each step of a token is noted, and kept alive."""
    read, in_place = attention.read_memory, recall.in_place

    def noted(module: Any, reader: Any, memory: Any, query: Any, key: Any, value: Any, *rest: Any,
              **named: Any) -> Any:  # fmt: skip
        out, gate = read(module, reader, memory, query, key, value, *rest, **named)
        if module.layer_idx == LAYER and query.shape[2] == 1:
            held = memory.held
            given = {
                "window keys": key, "window values": value, "stored keys": held.keys,
                "stored values": held.values, "table": held.table, "stamps": held.stamps,
                "created": held.created, "positions": held.positions, "bias": memory.bias,
                "cosines": memory.turn[0], "sines": memory.turn[1], "out": out, "gate": gate,
            }  # fmt: skip
            kept.append((given, memory))
            steps.append({name: x.data_ptr() for name, x in given.items()})
        return out, gate

    attention.read_memory, recall.in_place = noted, lambda device: True
    try:
        yield
    finally:
        attention.read_memory, recall.in_place = read, in_place


class Played:
    """Stands for a CUDA graph: the recorded function itself, each time."""

    def __init__(self, function: Callable[[], Any], _: torch.device) -> None:
        self._function = function

    def replay(self) -> None:
        """Run it."""
        self.result = self._function()


@contextmanager
def playing() -> Iterator[None]:
    """`graphs=True` runs on a CPU inside."""
    record, fit = graph.record, replays.require_fit
    graph.record, replays.require_fit = Played, lambda core: None
    try:
        yield
    finally:
        graph.record, replays.require_fit = record, fit


@torch.inference_mode()
def moves(count: int, window: int, graphs: bool = False) -> dict[str, int]:
    """In how many of `count` steps but the first each address is another one than before."""
    steps: list[Addresses] = []
    model = decoding.tiny_model(layers=LAYER + 2)
    text = decoding.some_text(STORED)
    settings = {"window": window, "graphs": graphs}
    with playing(), noting(steps, []), decoding.remembering(model, text, **settings) as memory:
        decoding.begin(model, decoding.some_text(PROMPT, seed=1)).steps(count)
        counted = memory.stats()["graphs"]
    if graphs:
        if (counted["captured"], counted["replayed"]) != (1, count - 1):
            raise RuntimeError(f"one recorded step and {count - 1} replays expected, got {counted}")
        # These are made inside of the recorded step, in memory of its own.
        steps = [{n: x for n, x in s.items() if n not in ("cosines", "sines")} for s in steps]
    if len(steps) != count:
        raise RuntimeError(f"{count} steps that read memory expected, got {len(steps)}")
    pairs = [*itertools.pairwise(steps)]
    return {name: sum(a[name] != b[name] for a, b in pairs) for name in steps[0]}


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=whole(2), default=129)
    parser.add_argument("--window", type=whole(64), default=64, help="tokens, so that blocks leave")
    parser.add_argument("--graphs", action="store_true", help="steps as graphs=True records them")
    parser.add_threads(1)
    args = parser.parse_args(words)
    found = moves(args.steps, args.window, args.graphs)
    head = rows.conditions(steps=args.steps, window=args.window, graphs=args.graphs)
    rows.append("addresses", {**head, "pairs": args.steps - 1, "moves": found})
    for name, count in found.items():
        print(f"{name:14} " + (f"moves in {count} of {args.steps - 1}" if count else "stays"))


if __name__ == "__main__":
    run(main)
