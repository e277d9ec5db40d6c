"""Ctrl-C while an answer is generated: the answer ends, and what was said so far is kept."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PATIENCE = 1.0
"""Seconds in which further Ctrl-C mean the same as the first one."""


class Stop:
    """A stopping criterion for ``generate``: true once Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0

    def ask(self, *_: Any) -> None:
        """Handles the signal; raises `KeyboardInterrupt` where the answer does not end by it."""
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > PATIENCE:
            raise KeyboardInterrupt

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Bool ``[rows]``: whether each row of ``input_ids`` ``[rows, tokens]`` ends here."""
        rows = input_ids.shape[0]
        return torch.full((rows,), self.asked, dtype=torch.bool, device=input_ids.device)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, Ctrl-C raises nothing: it asks for the end of the answer, behind the present token.

    An exception in the middle of a forward would leave some layers a token ahead of the others. A
    further Ctrl-C, more than `PATIENCE` later, interrupts as it does elsewhere.
    """
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    # Who runs it in the background has the signal ignored: that stays so.
    if before is signal.SIG_IGN:
        yield stop
        return
    signal.signal(signal.SIGINT, stop.ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
