"""What memory costs: reading, a decode step and peak memory, each against the plain model.

The two sides alternate within one run; what is reported are the ratios of neighbours (p20, p50,
p80). `reading`: tokens a second of `memory.read` against the plain windowed forward (512 tokens a
forward, no cache, logits of the last token only: the stricter side; `ratio_all_logits` is the
other). `decode`: a step of stock `generate` with 4,000 tokens stored and recall active against the
paused memory, same prompt and same length. `peak`: the largest resident size of a fresh process
that reads 20,000 or 100,000 tokens, budget 16,000.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.clock import generate
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.device import device
from benchmarks.shared.model import WINDOW, described, load_model
from benchmarks.shared.stats import quantiles
from benchmarks.texts.needle import QUESTION, NeedleText
from cmr.evaluation.answers import recalled
from cmr.evaluation.prompts import chat

PARTS = ("reading", "decode", "peak")
STORED = 4_000
PEAKS = (20_000, 100_000)
PEAK_BUDGET = 16_000


@torch.inference_mode()
def plain(model: Any, ids: torch.Tensor, keep: int) -> float:
    """Seconds of the windowed forward over ids [T]; `keep` logits a window (0 = all)."""
    begun = time.perf_counter()
    for at in range(0, len(ids), WINDOW):
        model(input_ids=ids[None, at : at + WINDOW], use_cache=False, logits_to_keep=keep)
    device(ids.device.type).synchronise()
    return time.perf_counter() - begun


def reading(model: Any, memory: Any, ids: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Ratio of tokens a second, memory.read over plain, round by round."""
    read, alone, full = [], [], []
    own = device(model.device.type)
    there = ids.to(model.device)
    for number in range(rounds + 1):
        memory.pause()
        alone.append(plain(model, there, 1))
        memory.resume()
        memory.clear()
        begun = time.perf_counter()
        memory.read(ids)
        own.synchronise()
        read.append(time.perf_counter() - begun)
        memory.pause()
        full.append(plain(model, there, 0))
        memory.resume()
        if number == 0:  # the first round warms both sides up
            read, alone, full = [], [], []
    speeds = {
        "read_tokens_s": quantiles([len(ids) / s for s in read]),
        "plain_tokens_s": quantiles([len(ids) / s for s in alone]),
        "plain_all_logits_tokens_s": quantiles([len(ids) / s for s in full]),
    }
    ratio = quantiles([a / r for a, r in zip(alone, read, strict=True)])
    all_logits = quantiles([a / r for a, r in zip(full, read, strict=True)])
    return {"tokens": len(ids), "rounds": rounds, "ratio": ratio,
            "ratio_all_logits": all_logits, **speeds}  # fmt: skip


def decode(
    model: Any, tokenizer: Any, memory: Any, haystack: NeedleText, steps: int, rounds: int
) -> dict[str, Any]:
    """Ratio of step times with recall active over paused; generations alternate.

    Raises:
        RuntimeError: when the paused model answers otherwise than before attaching, or nothing was
            recalled; no time is reported then.
    """
    prompt = chat(tokenizer, QUESTION, haystack.tokens[STORED : STORED + 256])
    memory.pause()
    expected, _ = generate(model, tokenizer, prompt, steps)
    memory.resume()
    memory.clear()
    memory.read(torch.tensor(haystack.text(STORED, 50)[0]))
    active, paused, ratios, gates = [], [], [], []
    for number in range(rounds + 1):
        memory.resume()
        _, clock = generate(model, tokenizer, prompt, steps)
        passages = recalled(memory)
        if not passages:
            raise RuntimeError("nothing was recalled while decoding: there is nothing to time")
        memory.pause()
        said, other = generate(model, tokenizer, prompt, steps)
        if said != expected:
            raise RuntimeError("the paused model generates other tokens than before reading")
        if number == 0:
            continue
        gates.append(passages[0].gate)
        active += clock.steps()
        paused += other.steps()
        ratios.append(quantiles(clock.steps())["p50"] / quantiles(other.steps())["p50"])
    memory.resume()
    return {
        "stored": STORED, "prompt": len(prompt), "steps": steps, "rounds": rounds,
        "ratio": quantiles(ratios), "ratio_of_means": sum(active) / sum(paused),
        "active_ms": quantiles([1e3 * s for s in active]),
        "paused_ms": quantiles([1e3 * s for s in paused]), "gate": sum(gates) / len(gates),
    }  # fmt: skip


def resident_peak() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux keeps `ru_maxrss` across exec, so it may be the parent's; `VmHWM` is the process's own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def child(name: str, tokens: int, settings: dict[str, Any]) -> None:
    """In a fresh process: reads and prints the peak resident size in bytes as JSON."""
    import cmr

    model, tokenizer = load_model(name)
    ids = torch.tensor(NeedleText(tokenizer, tokens).tokens[:tokens])
    before = resident_peak()
    with cmr.attach(model, **({"budget": PEAK_BUDGET} | settings)) as memory:
        report = memory.read(ids)
        stored, size = int(memory.tokens), int(memory.nbytes)
    found = {
        "tokens": tokens,
        "before": before,
        "peak": resident_peak(),
        "stored_tokens": stored,
        "memory_bytes": size,
        "tokens_s": report.tokens_per_second,
    }
    print(json.dumps(found))


def peak(name: str, rounds: int, settings: list[str], threads: int | None) -> dict[str, Any]:
    """Ratio of the peak sizes of processes that read 100,000 and 20,000 tokens, alternating."""
    seen: list[list[dict[str, Any]]] = []
    for _ in range(rounds):
        pair = []
        for tokens in PEAKS:
            command = [sys.executable, "-m", "benchmarks.cost", "--child-read", str(tokens)]
            command += ["--model", name]
            command += ["--set", *settings] if settings else []
            command += ["--threads", str(threads)] if threads else []
            done = subprocess.run(command, capture_output=True, text=True, cwd=rows.ROOT)
            if done.returncode:
                raise RuntimeError(f"reading {tokens} tokens failed: {done.stderr[-800:]}")
            pair.append(json.loads(done.stdout.strip().splitlines()[-1]))
        seen.append(pair)
    ratios = [long["peak"] / short["peak"] for short, long in seen]
    return {"budget": PEAK_BUDGET, "rounds": rounds, "ratio": quantiles(ratios), "peaks": seen}


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=whole(), default=9)
    parser.add_argument("--steps", type=whole(2), default=48, help="decode steps a generation")
    parser.add_argument("--peak-rounds", type=whole(), default=2)
    parser.add_argument("--read-tokens", type=whole(), default=4_096)
    parser.add_argument("--child-read", type=whole(), help=argparse.SUPPRESS)
    parser.add_model()
    parser.add_threads()
    parser.add_settings()
    args = parser.parse_args(words)
    if args.child_read:
        child(args.model, args.child_read, args.settings)
        return

    import cmr

    got: dict[str, dict[str, Any]] = {}
    model, tokenizer = load_model(args.model)
    haystack = NeedleText(tokenizer, max(args.read_tokens, STORED + 256))
    with cmr.attach(model, tokenizer=tokenizer, **args.settings) as memory:
        head = rows.conditions(model, 0, memory=described(memory))
        if "reading" in args.parts:
            ids = torch.tensor(haystack.tokens[: args.read_tokens])
            got["reading"] = reading(model, memory, ids, args.rounds)
        if "decode" in args.parts:
            got["decode"] = decode(model, tokenizer, memory, haystack, args.steps, args.rounds)
    del model
    if "peak" in args.parts:
        got["peak"] = peak(args.model, args.peak_rounds, args.set, args.threads)
    for part, row in got.items():
        rows.append("cost", {**head, "part": part, **row})
        r = row["ratio"]
        print(f"{part:8} ratio {r['p50']:.3f} [p20 {r['p20']:.3f}, p80 {r['p80']:.3f}]  "
              + ", ".join(f"{k} {v['p50']:.1f}" for k, v in row.items()
                          if isinstance(v, dict) and k != "ratio"), flush=True)  # fmt: skip


if __name__ == "__main__":
    run(main)
