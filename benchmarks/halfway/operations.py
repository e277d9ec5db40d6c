"""Random operations on memories, folders and processes: is everything where it belongs afterwards?

Sequences of operations on four memories with small tiers of all kinds: three in this process (two
models of the same weights and one of others) and one in another process, which all save to and load
from the same three folders, one of them encrypted. The operations: read, forwards with caches that
go on, generate, absorb, search; sessions made, with a lifetime or ephemeral, renamed, copied,
merged; pin, forget (by session, blocks, text, age), clear, time that passes, inspect, consolidate,
lift; save, load, detach and reattach, pause and resume; and a forked process that goes on alone.

An oracle in plain Python knows every session's text, which blocks it became, and what each folder
holds. Each operation is held against it; every twelfth everything is, byte by byte.

foreign: text, states, links or recalls that are not the session's own, word for word. lost: text
that is gone and was not evicted, expired or forgotten; terms, pins and names that changed.
resurrected: what was forgotten, or its time over, found stored, in a folder, by its ids or states
in any file or tensor. slots: the account of the slots does not add up, or an empty one is not 0.
refused: an error where there is no reason for one. crash: an error that is no typed one.
A sequence ends at its first failure; `--first N --operations 1` begins with that sequence again.
"""

from __future__ import annotations

import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.halfway.steps.actor import at_time, tiny
from benchmarks.halfway.steps.ground import Failure
from benchmarks.halfway.steps.remote import Remote
from benchmarks.halfway.steps.walk import Walk
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole

LENGTH = 120
"""Operations of a sequence."""
FAILURES = ("foreign", "lost", "resurrected", "slots", "refused", "crash")


def walk(operations: int, seed: int = 0, first: int = 0) -> dict[str, Any]:
    """At least so many operations, in sequences from the `first` on; prints what failed.

    Returns:
        A row: operations in all and by name, refusals, failures by kind, seconds.
    """
    began, number = time.perf_counter(), first
    done, refused, failed = Counter[str](), Counter[str](), Counter[str]()
    # Before a model is made here: the other process shares nothing with this one.
    far = Remote(seed=7)
    models = [tiny(7), tiny(7), tiny(8)]
    # Settings of random models recall little; nobody has to be told each time.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while done.total() < operations:
            with tempfile.TemporaryDirectory() as folder:
                one = Walk(f"{seed}/{number}", models, Path(folder), far)
                try:
                    with at_time(one.clock):
                        one.run(min(LENGTH, operations - done.total()))
                except Failure as failure:
                    failed[failure.kind] += 1
                    _print(number, f"{failure.kind}: {failure}", one)
                except Exception:
                    failed["crash"] += 1
                    _print(number, f"crash: {traceback.format_exc(limit=-5)}", one)
                finally:
                    one.close()
            # One that fails at its first operation counts, or there would be no end.
            done += one.done or Counter(["none"])
            refused += one.refused
            number += 1
    far.close()
    return {
        "operations": done.total(), "sequences": number - first,
        **{kind: failed[kind] for kind in FAILURES},
        "by_kind": dict(sorted(done.items())), "refusals": dict(sorted(refused.items())),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def _print(number: int, what: str, one: Walk) -> None:
    print(f"sequence {number}, operation {one.done.total()}: {what}")
    for line in one.log[-8:]:
        print(f"    {line}", flush=True)


def main(words: list[str] | None = None) -> int:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--operations", type=whole(), default=2_000)
    parser.add_argument("--first", type=whole(0), default=0, help="sequence to begin with")
    parser.add_seed()
    args = parser.parse_args(words)
    torch.set_num_threads(1)  # the other process is forked, and others share the machine
    row = walk(args.operations, args.seed, args.first)
    print(row)
    rows.append("operations", {**rows.conditions(None, args.seed, length=LENGTH), **row})
    return int(any(row[kind] for kind in FAILURES))


if __name__ == "__main__":
    run(main)
