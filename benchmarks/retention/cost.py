"""What scoring costs: seconds of `memory.read` by each method over those without scoring.

All methods take turns within a round, on the same text; ratios are within a round. Processor time
tells more than wall time where other processes run (`load` says how many): give it one thread.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import load_model
from benchmarks.shared.stats import quantiles
from benchmarks.texts.needle import NeedleText
from cmr.config import SCORING_METHODS


def measure(model: Any, ids: torch.Tensor, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of each read, by method."""
    import cmr

    seen: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        turns = [None, *SCORING_METHODS]
        for method in turns[number % len(turns) :] + turns[: number % len(turns)]:
            with cmr.attach(model, budget=len(ids), scoring_method=method) as memory:
                begun, work = time.perf_counter(), time.process_time()
                memory.read(ids)
                spent = time.perf_counter() - begun, time.process_time() - work
            if number:  # the first round warms up
                entry = seen.setdefault(str(method), {"wall": [], "processor": []})
                entry["wall"].append(spent[0])
                entry["processor"].append(spent[1])
    return seen


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(), default=1_536)
    parser.add_argument("--rounds", type=whole(), default=5)
    parser.add_model()
    parser.add_threads()
    args = parser.parse_args(words)
    model, tokenizer = load_model(args.model)
    ids = torch.tensor(NeedleText(tokenizer, args.tokens).tokens[: args.tokens])
    head = rows.conditions(model, 0, window=512, tokens=args.tokens, rounds=args.rounds,
                           load=os.getloadavg()[0])  # fmt: skip
    seen = measure(model, ids, args.rounds)
    for method, own in seen.items():
        ratio = {
            clock: quantiles([a / b for a, b in zip(own[clock], seen["None"][clock], strict=True)])
            for clock in own
        }
        speed = quantiles([args.tokens / s for s in own["wall"]])
        row = {"ratio": ratio["wall"], "ratio_processor": ratio["processor"], "tokens_s": speed}
        rows.append("retention", {**head, "part": "cost", "method": method, **row})
        print(f"{method:16} " + "  ".join(f"{c} {r['p50']:.2f} [{r['p20']:.2f}, {r['p80']:.2f}]"
                                          for c, r in ratio.items()))  # fmt: skip


if __name__ == "__main__":
    run(main)
