"""The figures of every kernel on every architecture, as rows under version control."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

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
    if workers < 2:
        return [row for job in jobs for row in _compile(job)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return [row for rows in pool.map(_compile, jobs) for row in rows]


def known_targets() -> list[str]:
    """Names of the architectures."""
    from cmr.kernels.gpu._launch import TARGETS

    return list(TARGETS)


def _compile(job: tuple[str, str]) -> list[dict[str, Any]]:
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
