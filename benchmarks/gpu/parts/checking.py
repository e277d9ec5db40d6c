"""Every check of `tests/gpu` on the device, whatever becomes of the others."""

from __future__ import annotations

from benchmarks.gpu.log import Job, Run
from tests.gpu.every import EVERY, Check

TINY = ("state_scores/70x100: ", "block_maxima/1x70x100: ", "cover/5x8 3: ")
"""Of these calls alone: the suite runs all of them on a CPU anyway."""


def begin(run: Run) -> None:
    """A row a check; those that fail are printed, and how many there were of each outcome."""
    wanted = [check for check in EVERY if not run.tiny or check.name.startswith(TINY)]
    count = run.do([_job(check, run) for check in wanted], quiet=True)
    run.say("checks", ", ".join(f"{number} {outcome}" for outcome, number in count.items()))
    if run.tiny:
        run.leave_out([check.name for check in EVERY if check not in wanted], "small sizes only")


def _job(check: Check, run: Run) -> Job:
    def call() -> dict[str, str]:
        check.run(run.device.kind)
        return {}

    return Job(check.name, call)
