"""The figures of every kernel on every architecture, as rows under version control."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

Job = tuple[str, str]
"""A case and an architecture."""


class Compiled(NamedTuple):
    """What a case compiled to: a row a launch, and the seconds that it took."""

    rows: list[dict[str, Any]]
    seconds: float


TABLE = Path(__file__).parents[1] / "results" / "compiled.jsonl"


def compile_all(
    only: str = "", on: Sequence[str] | None = None, workers: int = 2
) -> list[dict[str, Any]]:
    """Figures of every launch of every case on every architecture, in a fixed order.

    Args:
        only: part of the name of the cases wanted; empty: all.
        on: architectures; None: all.
        workers: processes that compile.
    """
    from benchmarks.compiled.cases import all_cases

    names = [name for name in sorted(all_cases()) if only in name]
    jobs = [(name, target) for name in names for target in on or known_targets()]
    found = []
    for _, made in as_they_come(jobs, workers):
        if isinstance(made, Exception):
            raise made
        found += made.rows
    return found


def as_they_come(
    jobs: Sequence[Job], workers: int, left: Callable[[], float] | None = None
) -> Iterator[tuple[str, Compiled | Exception]]:
    """Compile jobs, in their order; each with its case's name when it is done.

    Args:
        jobs: what to compile.
        workers: processes that compile; 1: this one.
        left: seconds that are left: when none are, it ends. None: it takes what it takes.

    Yields:
        What a case compiled to, or what was raised.
    """
    if workers < 2:
        for job in jobs:
            if left is not None and left() <= 0:
                return
            yield job[0], _timed(job)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    try:
        futures = [pool.submit(_timed, job) for job in jobs]
        for job, future in zip(jobs, futures, strict=True):
            try:
                made: Compiled | Exception = future.result(
                    None if left is None else max(0.0, left())
                )
            except OutOfTime:
                return
            except BrokenExecutor as error:  # a process died: so do all jobs behind
                made = error
            yield job[0], made
    finally:
        pool.shutdown(wait=left is None, cancel_futures=True)


def _timed(job: Job) -> Compiled | Exception:
    begun = time.perf_counter()
    try:
        return Compiled(_compile(job), time.perf_counter() - begun)
    except Exception as error:  # of one case; what the others compile to is wanted all the same
        # A compiler's exceptions hold what no other process can be given.
        return RuntimeError(f"{job[0]} for {job[1]}: {type(error).__name__}: {error}")


def known_targets() -> list[str]:
    """Names of the architectures."""
    from cmr.kernels.gpu._launch import TARGETS

    return list(TARGETS)


def _compile(job: Job) -> list[dict[str, Any]]:
    from benchmarks.compiled.cases import all_cases
    from benchmarks.compiled.compiler import TRITON, compile_launches
    from benchmarks.compiled.figures import figures

    name, target = job
    launches = compile_launches(all_cases()[name].call, target)
    head = {"case": name, "target": target, "triton": TRITON}
    return [{**head, **figures(launch, target)} for launch in launches]


def write(rows: Sequence[dict[str, Any]]) -> Path:
    """Replace the table."""
    TABLE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TABLE


def read() -> list[dict[str, Any]]:
    """The rows of the table."""
    return [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
