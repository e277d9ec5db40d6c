"""Random steps, one after the other, and a look at everything now and then."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.halfway.steps.folders import FolderSteps
from benchmarks.halfway.steps.forgetting import ForgetSteps
from benchmarks.halfway.steps.processes import ProcessSteps
from benchmarks.halfway.steps.sessions import SessionSteps
from benchmarks.halfway.steps.text import TextSteps

KINDS = {
    "read": 16, "forward": 26, "generate": 6, "absorb": 3, "search": 4, "session": 4, "rename": 3,
    "fork": 3, "merge": 2, "pin": 2, "forget": 6, "clear": 1, "wait": 4, "inspect": 3,
    "consolidate": 3, "lift": 3, "save": 5, "load": 5, "detach": 2, "pause": 2, "child": 0.3,
}  # fmt: skip
"""How often each operation is drawn."""
CHANGE_FOLDERS = ("save", "load", "child")
"""Not in a forked process: what it does to a folder nobody else would know of."""
FULL = 12
"""Operations between two looks at everything."""


class Walk(TextSteps, SessionSteps, ForgetSteps, FolderSteps, ProcessSteps):
    """A sequence of operations; see `Ground` for what it is given.

    Attributes:
        done: operations by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.done: Counter[str] = Counter()

    def run(self, operations: int) -> None:
        """Do so many operations; raises `Failure` at the first that is wrong."""
        while self.done.total() < operations:
            self._step(KINDS)
            if self.done.total() % FULL == 0:
                self.look_at_everything()
        self.look_at_everything()
        self.look_at_tensors()

    def go_on(self) -> None:
        """See `ProcessSteps`."""
        # What is over by a clock of its own a child would erase in the folders of both.
        without = CHANGE_FOLDERS if self.files else (*CHANGE_FOLDERS, "wait")
        self._step({kind: often for kind, often in KINDS.items() if kind not in without})

    def _step(self, kinds: dict[str, float]) -> None:
        weights = [6, 3, 1, 3][: len(self.places)]
        place = self.rng.choices(self.places, weights)[0]
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        self.begin(place, kind)
        getattr(self, f"op_{kind}")(place)
        self.done[kind] += 1
