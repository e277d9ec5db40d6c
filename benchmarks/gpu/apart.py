"""A part in a process of its own: one that crashes, hangs or breaks the device ends alone.

An illegal access makes every later call of its process fail, and a kernel that never ends can only
be ended with its process. What a process has found stands in the rows; another goes on behind it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.log import BROKEN, NAME, Run
from benchmarks.shared import rows

STALL = 150.0
"""Seconds without a row after which a process counts as hanging."""
TURN = 0.25
"""Seconds between two looks at it."""
TOO_FEW = 5.0
"""Seconds that are too few to begin a process."""
DEATHS = 3
"""Processes that end in a row without having found anything: what they lack, others lack, too."""


def last_number(run: str, part: str) -> int:
    """The number of the last job that has a row; -1 where none has."""
    found = (
        row.get("number", -1)
        for row in rows.load(NAME, rows.into)
        if row["run"] == run and row["part"] == part
    )
    return max(found, default=-1)


def supervise(
    run: Run, name: str, command: Callable[[int, float], Sequence[str]], start: int = 0
) -> None:
    """Have processes do a part until it is done or its time is over.

    Args:
        run: the part.
        name: of the run, in its rows.
        command: the command line that begins with a job of this number and may take so many
            seconds.
        start: number of the first job.
    """
    deaths = 0
    while run.left() > TOO_FEW:
        code = _wait(command(start, run.left()), run)
        last = last_number(name, run.part)
        deaths = 0 if last >= start else deaths + 1
        start = max(start, last + 1)
        if code == 0:
            return
        if code != BROKEN:
            why = f"its process {code}" if isinstance(code, str) else f"exit code {code}"
            run.emit(f"job {start}", "died", number=start, said=why)
            start += 1
        if deaths >= DEATHS:
            run.leave_out([f"all from job {start} on"], f"{deaths} processes found nothing")
            return
    run.leave_out([f"all from job {start} on"], "out of time")


def _wait(words: Sequence[str], run: Run) -> int | str:
    """Exit code of a process, or what became of it: it writes no rows, or goes on for too long."""
    file = rows.into / f"{NAME}.jsonl"
    process = subprocess.Popen(words, cwd=rows.ROOT)
    size, since = _size(file), time.monotonic()
    try:
        while (code := process.poll()) is None:
            if (now := _size(file)) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > STALL:
                return f"was silent for {STALL:.0f} seconds and was ended"
            if run.left() < -STALL:
                return "went on beyond its time and was ended"
            time.sleep(TURN)
        return code
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def python(*words: str) -> list[str]:
    """A command line of this interpreter."""
    return [sys.executable, "-m", "benchmarks.gpu", *words]
