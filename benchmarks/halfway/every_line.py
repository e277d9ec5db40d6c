"""An exception at every line: is anything lost, left over or somebody else's afterwards?

Operations on a small memory with all tiers are broken off at one point each: at a line of the
library, before or behind a call that it makes of something written in C (PyTorch, the system, a
lock), or in the middle of the model. `KeyboardInterrupt`, `MemoryError` and `OSError` come in turn.
At most one call is made then that has nothing to do with it, by this thread or by another one.
Afterwards what is stored must be one of the states that others could see while the same operation
ran without being disturbed; slots, links, numbers and sessions must add up; empty slots must hold
zeros; what was to be forgotten must be in no tensor and no file once the call was made again; and
requests that follow (of another thread, paused, the model alone; after every third point also a
generation, a read, a save, a forget and a load) must give what they give a memory that came to the
same state undisturbed.


Each place in the code is broken off once at least as long as there are points for it, the others
are drawn. Failures are told by what is wrong, and where the exception came.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.halfway.scenes import SCENES, SETTINGS
from benchmarks.halfway.trap import ERRORS, KINDS, Place
from benchmarks.halfway.world import Failure, Point, World
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole


def draw(counted: dict[tuple[str, str], list[Place]], points: int, seed: int) -> list[Point]:
    """Points of all operations and kinds, each place at least once as long as there are enough."""
    drawn = random.Random(seed)
    first, others = [], []
    for (operation, kind), places in counted.items():
        at = list(range(1, len(places) + 1))
        drawn.shuffle(at)
        known: set[Place] = set()
        for number in at:
            place = places[number - 1]
            (others if place in known else first).append((operation, kind, number))
            known.add(place)
    drawn.shuffle(first)
    drawn.shuffle(others)
    errors = list(ERRORS)
    chosen = (first + others)[:points]
    return [Point(*what, errors[i % len(errors)]) for i, what in enumerate(chosen)]


def summary(failures: list[Failure]) -> Iterator[str]:
    """Lines that say what was wrong how often, and where the exception came most often then."""
    kinds: dict[str, list[str]] = {}
    for point, place, wrong in failures:
        # What differs by its numbers alone is of one kind.
        for kind in {re.sub(r"\d+", "n", what) for what in wrong}:
            where = f"{point.operation}, {point.kind} {place}, {point.error}"
            kinds.setdefault(kind, []).append(where)
    for kind, places in sorted(kinds.items(), key=lambda item: -len(item[1])):
        yield f"{len(places):5d}  {kind}"
        yield from (f"{often:13d}  {where}" for where, often in Counter(places).most_common(4))


def main(words: list[str] | None = None) -> int:
    """Command line; exit code 1 where something was wrong."""
    parser = Parser(__doc__)
    parser.add_argument("--points", type=whole(), default=6000, help="in all (default: 6000)")
    parser.add_argument("--operations", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=whole(), help="stop after so many, whatever is left")
    parser.add_argument("--failures", type=Path, metavar="FILE", help="write each of them there")
    parser.add_seed()
    parser.add_threads(1)
    args = parser.parse_args(words)
    began = time.perf_counter()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, World(Path(folder)) as world:
        counted = world.counted(args.operations, args.kinds)
        points = draw(counted, args.points, args.seed)
        done, failures = Counter[str](), list[Failure]()
        for number, point in enumerate(points, start=1):
            if args.minutes and time.perf_counter() - began > 60 * args.minutes:
                break
            found = world.broken_off(point)
            print(*found, sep="\n", end="\n" * bool(found), flush=True)
            failures += found
            done[point.operation] += 1
            if not number % 500:
                print(f"{number} points, {len(failures)} failures", flush=True)
    print(*summary(failures), sep="\n")
    if args.failures:
        args.failures.write_text("".join(f"{failure}\n" for failure in failures))
    conditions = rows.conditions(None, args.seed, memory=SETTINGS)
    failed = Counter(failure.point.operation for failure in failures)
    for operation, count in done.items():
        there = {p for (name, _), places in counted.items() if name == operation for p in places}
        row = {"operation": operation, "points": count, "failures": failed[operation],
               "places": len(there), "kinds": args.kinds}  # fmt: skip
        print(row)
        rows.append("every_line", {**conditions, **row})
    seconds = round(time.perf_counter() - began)
    print(f"{sum(done.values())} points, {len(failures)} failures, {seconds} s")
    return int(bool(failures))


if __name__ == "__main__":
    run(main)
