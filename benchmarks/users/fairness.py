"""How long somebody waits for a token while somebody else's long text is read.

One thread reads 100,000 tokens into a session; another one generates in its own session meanwhile.
Compared are the decoding steps alone and beside the read. A step may have to wait for the window
that is being read, which takes as long as is noted here, and for no more.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import torch

import cmr
from benchmarks.shared import rows
from benchmarks.shared.clock import generate
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin, described
from benchmarks.texts.needle import QUESTION, NeedleText
from cmr.evaluation.prompts import chat

STORED = 4_000


def spread(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and the greatest, in milliseconds."""
    middle, high = np.quantile(seconds, [0.5, 0.95])
    return {"p50": 1e3 * float(middle), "p95": 1e3 * float(high), "max": 1e3 * max(seconds)}


class Progress:
    """Notes when each window was done."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, done: int, total: int) -> None:
        self.times.append(time.perf_counter())

    @property
    def windows(self) -> list[float]:
        """Seconds of each window."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def measure(
    model: Any, tokenizer: Any, memory: cmr.Memory, ids: torch.Tensor, steps: int
) -> dict[str, Any]:
    """Steps alone and beside a read of `ids` `[tokens]`."""
    prompt = chat(tokenizer, QUESTION)
    mine, other = (memory.session(name, create=True) for name in ("mine", "other"))
    progress = Progress()
    mine.read(ids[:STORED], progress=progress)
    windows = progress.windows[1:-1]

    def answer() -> list[float]:
        with mine:
            return generate(model, tokenizer, prompt, steps)[1].steps()

    answer()
    alone = [step for _ in range(4) for step in answer()]
    progress = Progress()
    reader = threading.Thread(target=other.read, args=(ids,), kwargs={"progress": progress})
    began = time.perf_counter()
    reader.start()
    beside: list[float] = []
    while reader.is_alive():
        beside += answer()
    reader.join()
    return {
        "tokens": len(ids), "read_seconds": time.perf_counter() - began,
        "steps_alone": len(alone), "steps_beside": len(beside),
        "window_ms": spread(windows), "window_beside_ms": spread(progress.windows[1:-1]),
        "alone_ms": spread(alone), "beside_ms": spread(beside),
        "p95_more_ms": spread(beside)["p95"] - spread(alone)["p95"],
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(), default=100_000)
    parser.add_argument("--steps", type=whole(), default=24, help="decode steps a generation")
    args, model, tokenizer, conditions = begin(parser, words)
    ids = torch.tensor(NeedleText(tokenizer, args.tokens).tokens[: args.tokens])
    with cmr.attach(model, tokenizer=tokenizer, **args.settings) as memory:
        conditions["memory"] = described(memory)
        row = measure(model, tokenizer, memory, ids, args.steps)
    rows.append("fairness", {**conditions, **row})
    for name in ("window_ms", "alone_ms", "beside_ms"):
        print(f"{name:10}", {k: round(v, 1) for k, v in row[name].items()})
    print(f"p95 of a step beside the read, more than alone: {row['p95_more_ms']:.1f} ms")


if __name__ == "__main__":
    run(main)
