"""What a run has found so far: rows that are written as they come, and the time that is left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.shared import rows
from benchmarks.shared.device import Processor
from cmr.evaluation.machine import version
from cmr.kernels.dispatch import implementation
from tests.gpu.inputs import NotHere

NAME = "gpu"
SAID = 240
"""Characters that a row keeps of what went wrong."""
BROKEN = 70
"""Exit code of a process whose device answers no more."""


class Broken(Exception):
    """The device answers no more in this process; `number` is that of the job which did it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"after job {number} the device answers no more in this process")
        self.number = number


@dataclass(frozen=True)
class Job:
    """One thing that is measured or checked.

    Attributes:
        name: of it, within its part.
        call: does it and gives the row's fields; `said` among them is printed. It may raise:
            NotHere where it cannot be done on this device, anything else where it failed.
    """

    name: str
    call: Callable[[], Mapping[str, Any]]


class Run:
    """A part under way.

    Args:
        part: its name.
        device: that is measured.
        tiny: small sizes.
        seconds: that it may take; a job that is under way then is finished.
        head: what every row begins with.
        start: number of the first job that is wanted; those before were done in another process.
    """

    def __init__(
        self,
        part: str,
        device: Processor,
        tiny: bool,
        seconds: float,
        head: Mapping[str, Any],
        start: int = 0,
    ) -> None:
        self.part, self.device, self.tiny, self.start = part, device, tiny, start
        self.head = {**head, "part": part}
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left."""
        return self._until - time.monotonic()

    def emit(self, job: str, outcome: str, show: bool = True, **found: Any) -> None:
        """Write a row, and say it in a line.

        Args:
            job: what it is about.
            outcome: `ok`, `failed`, `not here`, `left out` or `died`.
            show: whether to print it.
            found: the row's other fields; `said` is what is printed.
        """
        rows.append(NAME, {**self.head, "job": job, "outcome": outcome, **found})
        if show:
            mark = "" if outcome == "ok" else f"{outcome}: "
            self.say(job, f"{mark}{found.get('said', '')}")

    def say(self, job: str, what: str) -> None:
        """Print a line."""
        print(f"{self.part:11} {job}: {what}", flush=True)

    def leave_out(self, names: Sequence[str], why: str) -> None:
        """A row that names what is not done, and why."""
        if names:
            self.emit(f"{len(names)} jobs", "left out", why=why, jobs=list(names), said=why)

    def do(self, jobs: Sequence[Job], quiet: bool = False) -> Counter[str]:
        """Do all jobs from `start` on, each in its turn, whatever becomes of the others.

        Args:
            jobs: always the same ones in the same order.
            quiet: print only what did not go well.

        Returns:
            How many had each outcome.

        Raises:
            Broken: the device answers no more; the row is written.
        """
        count: Counter[str] = Counter()
        for number, job in enumerate(jobs):
            if number < self.start:
                continue
            if self.left() <= 0:
                self.leave_out([left.name for left in jobs[number:]], "out of time")
                break
            begun = time.monotonic()
            try:
                outcome, found = "ok", dict(job.call())
            except NotHere as error:
                outcome, found = "not here", {"said": str(error)}
            except Exception as error:  # whatever a first run on a new GPU meets is its result
                # The first line says what it is; PyTorch's advice behind it is always the same.
                line = (str(error).strip().splitlines() or [""])[0]
                outcome, found = "failed", {"said": f"{type(error).__name__}: {line}"[:SAID]}
            seconds = round(time.monotonic() - begun, 3)
            show = not quiet or outcome == "failed"
            count[outcome] += 1
            self.emit(job.name, outcome, show, number=number, seconds=seconds, **found)
            if outcome == "failed" and not self.device.healthy():
                raise Broken(number)
        return count


def head(
    device: Processor, tiny: bool, run: str | None = None, command: str | None = None
) -> dict[str, Any]:
    """What every row of a run says: conditions, device, which kernels run there.

    Args:
        device: that is measured.
        tiny: small sizes.
        run: the run that this process is a part of; None: a new one.
        command: the command line of that run; None: this one's.
    """
    found = rows.conditions()
    found.pop("settings")
    return {
        **found,
        "run": run or found["run"],
        "command": command or found["command"],
        "device": device.kind,
        "device_name": device.name(),
        "backend": str(implementation(device.kind)),
        "triton": version("triton"),
        "tiny": tiny,
    }
