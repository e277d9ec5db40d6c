"""All that is to be known of a GPU in ten minutes: is it right there, how fast, what is far off.

Parts, in this order: `environment` (the device, what a launch costs), `bandwidth` (of its memory),
`compile` (all kernels, their spills), `checks` (all of tests/gpu, going on after failures),
`operations` (each by graph replay with a cold cache, beside its floor and PyTorch), `step` (decode
steps of a decoder of eight billion random weights and of the small real one: alone, attached, with
4,000, 64,000 and 1,000,000 tokens stored, one row and 32), `reading` (tokens a second). Rows are
written as they come; what was left out for time, and why, is a row, too. On a GPU every part has a
process of its own, unless it is the only one, and what crashes or hangs ends alone. `--tiny` runs
all of it small on whatever there is, a CPU if need be.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from benchmarks.gpu.apart import python, supervise
from benchmarks.gpu.log import BROKEN, NAME, Broken, Run, head
from benchmarks.gpu.summary import lines
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.device import Processor, device

PARTS: Mapping[str, tuple[str, float]] = {
    "environment": ("environment", 0.02),
    "bandwidth": ("bandwidth", 0.03),
    "compile": ("compiling", 0.2),
    "checks": ("checking", 0.25),
    "operations": ("operations", 0.2),
    "step": ("step", 0.25),
    "reading": ("reading", 0.05),
}
"""The module of each part, and its share of the time; what one leaves over goes to those behind."""


def main(words: list[str] | None = None) -> int | None:
    """Command line; the exit code of a part in a process of its own."""
    parser = Parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=_minutes, default=10.0, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--command", help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="start", type=whole(0), default=0, help=argparse.SUPPRESS)
    parser.add_threads()
    args = parser.parse_args(words)
    there = torch.cuda.is_available()
    kind = args.device or ("cuda" if there else "cpu")
    if kind == "cuda" and not there:
        parser.error("argument --device: there is no CUDA device")
    if kind == "cpu" and not args.tiny:
        parser.error("a CUDA device expected, there is none: --tiny runs small sizes on the CPU")
    own = device(kind)
    conditions = head(own, args.tiny, args.run, args.command)
    wanted = [part for part in PARTS if part in args.parts]
    if args.run is not None:
        try:
            _begin(Run(wanted[0], own, args.tiny, 60 * args.minutes, conditions, args.start))
        except Broken:
            return BROKEN
        finally:
            rows.written.clear()  # whoever began this process says where they are
        return 0
    measure(wanted, own, args, conditions)
    if (file := rows.into / f"{NAME}.jsonl").is_file() and file not in rows.written:
        rows.written.append(file)
    print()
    for line in lines(rows.of_runs(NAME, [conditions["run"]])):
        print(line)
    return None


def measure(
    wanted: Sequence[str], own: Processor, args: argparse.Namespace, conditions: dict[str, Any]
) -> None:
    """All parts, each with its share of the time that is left."""
    until = time.monotonic() + 60 * args.minutes
    for number, part in enumerate(wanted):
        shares = [PARTS[other][1] for other in wanted[number:]]
        seconds = (until - time.monotonic()) * shares[0] / sum(shares)
        going = Run(part, own, args.tiny, seconds, conditions)

        def command(start: int, left: float, part: str = part) -> list[str]:
            return _command(part, start, left, conditions, args)

        if own.kind == "cuda" and len(wanted) > 1:
            supervise(going, conditions["run"], command)
            continue
        try:
            _begin(going)
        except Broken as broken:  # what is left of it, in a process that has a device
            supervise(going, conditions["run"], command, broken.number + 1)


def _begin(part: Run) -> None:
    import_module(f"benchmarks.gpu.parts.{PARTS[part.part][0]}").begin(part)


def _command(
    part: str, start: int, left: float, conditions: dict[str, Any], args: argparse.Namespace
) -> list[str]:
    words = ["--parts", part, "--run", conditions["run"], "--command", conditions["command"]]
    words += ["--from", str(start), "--results", str(rows.into.resolve())]
    words += ["--minutes", f"{max(left, 1.0) / 60:.3f}", "--device", args.device or "cuda"]
    words += ["--tiny"] if args.tiny else []
    return python(*words, *(["--threads", str(args.threads)] if args.threads else []))


def _minutes(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"minutes above 0 expected, got {word!r}")
    return number


if __name__ == "__main__":
    run(main)
