"""Every check of this folder by its name, for `pytest tests/gpu` and `python -m benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.gpu import checks
from tests.gpu.calls import CALLS
from tests.gpu.forwards import FORWARD_CHECKS
from tests.gpu.inputs import Call, NotHere, together
from tests.gpu.steps import STEP_CHECKS
from tests.gpu.writes import WRITES

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Check:
    """One thing that has to hold on a device.

    Attributes:
        name: what holds, of what.
        run: takes `cpu` or `cuda`; raises AssertionError where it does not hold, NotHere where it
            cannot be looked at.
    """

    name: str
    run: Callable[[str], None]


def _of_a_call(call: Call) -> list[Check]:
    def small(run: Callable[[str], None]) -> Callable[[str], None]:
        def check(device: str) -> None:
            if call.large and device == "cpu":
                raise NotHere("large: for a GPU only")
            run(device)

        return check

    def specified(dtype: torch.dtype) -> Callable[[str], None]:
        return lambda device: checks.check_against_the_specification(call, device, dtype)

    def repeats(device: str) -> None:
        checks.check_repeats(call, device, torch.bfloat16, 1000 if device == "cuda" else 3)

    found = {f"as specified in {str(dtype)[6:]}": specified(dtype) for dtype in DTYPES}
    found["bitwise the same every time"] = repeats
    found["replays as a graph"] = lambda device: checks.check_replay(call, device, torch.bfloat16)
    if call.allocate is not None:
        found["allocates nothing"] = lambda device: checks.check_allocates_nothing(
            call, device, torch.bfloat16
        )
    return [Check(f"{call.name}: {what}", small(run)) for what, run in found.items()]


def _of_a_step(part: str, calls: list[Call]) -> list[Check]:
    whole = together(part, calls)
    return [
        Check(
            f"{part}: replays as one graph",
            lambda device: checks.check_replay(whole, device, torch.bfloat16),
        ),
        Check(
            f"{part}: allocates nothing",
            lambda device: checks.check_allocates_nothing(whole, device, torch.bfloat16),
        ),
    ]


OPERATIONS = [
    *(check for call in CALLS for check in _of_a_call(call)),
    *_of_a_step("decode step", [call for call in CALLS if call.decoding and not call.large]),
    *_of_a_step("write", WRITES),
]
FORWARDS = [
    Check(f"a model: {name}", run) for name, run in {**STEP_CHECKS, **FORWARD_CHECKS}.items()
]
EVERY = [*OPERATIONS, *FORWARDS]
