"""A long stream of text through a small budget: memory and throughput, tenth by tenth.

Throughput is told twice: by the clock, which other programs on the machine slow down, and by the
processor time that this process took.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import described, load_model
from benchmarks.texts.stream import make_stream

PARTS = 10


def read_parts(memory: Any, ids: torch.Tensor) -> list[dict[str, float]]:
    """Reads the stream in tenths; for each tokens a second and what the process takes by then."""
    import psutil

    process, found = psutil.Process(), []
    for part in ids.chunk(PARTS):
        before = time.perf_counter(), time.process_time()
        memory.read(part)
        wall, busy = time.perf_counter() - before[0], time.process_time() - before[1]
        found.append({
            "tokens": len(part), "tokens_per_second": len(part) / wall,
            "tokens_per_cpu_second": len(part) / busy,
            "resident_bytes": process.memory_info().rss, "stored_tokens": memory.tokens,
        })  # fmt: skip
        print({k: round(v) for k, v in found[-1].items()}, flush=True)
    return found


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(PARTS), default=1_000_000)
    parser.add_model()
    parser.add_seed()
    parser.add_threads()
    parser.add_settings("budget=64000")
    args = parser.parse_args(words)
    model, tokenizer = load_model(args.model)
    ids = torch.tensor(make_stream(tokenizer, args.tokens, args.seed).ids)[: args.tokens]
    import cmr

    with cmr.attach(model, **args.settings) as memory:
        parts = read_parts(memory, ids)
        stats = memory.stats()
        row = {
            **rows.conditions(model, args.seed, memory=described(memory)),
            "tokens": len(ids), "capacity_tokens": stats["capacity_tokens"],
            "store_bytes": memory.nbytes, "evicted_blocks": stats["evicted_blocks"],
            "last_to_first": parts[-1]["tokens_per_second"] / parts[0]["tokens_per_second"],
            "last_to_first_cpu":
                parts[-1]["tokens_per_cpu_second"] / parts[0]["tokens_per_cpu_second"],
            # The store's pages are taken as they are written: the budget is full in the first part.
            "resident_last_to_first": parts[-1]["resident_bytes"] / parts[0]["resident_bytes"],
            "parts": parts,
        }  # fmt: skip
    rows.append("stream", row)
    print({k: row[k] for k in ("last_to_first", "last_to_first_cpu", "resident_last_to_first")})


if __name__ == "__main__":
    run(main)
