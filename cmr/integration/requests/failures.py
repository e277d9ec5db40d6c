"""Where memory fails inside of a request, the model answers all the same: without it.

A strategy that raises, a tier that cannot be read, a disk that is full, memory that runs out: what
a `generate` or a forward wanted of the memory is left out, counted and logged, and the model says
what it says without it. Never left out is what tells whose memory it is, that the model is another
one, or that something was asked for wrongly: those errors raise, as do interrupts. So does
everything under `strict=True`, and in what asks the memory itself, such as `read` or `save`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

from cmr._frames import codes_of, raised_at
from cmr.errors import CMRError, NonFiniteStateError, StoreError
from cmr.integration.requests.timing import Timing, Took

STAGES = ("search", "read", "store", "next_token")
"""What may be left out: finding passages, reading them in the layers, making memory of what was
said, and what stored tokens say of the next one."""
LOG = logging.getLogger("cmr")


class Failures:
    """Counts what was left out of requests; what may not be is raised.

    Args:
        strict: whether everything raises.
        timing: tells whoever watches.

    Attributes:
        counts: how often each stage failed, by the type of the error.
    """

    def __init__(self, strict: bool, timing: Timing) -> None:
        self.strict, self._timing = strict, timing
        self.counts: Counter[tuple[str, str]] = Counter()

    def of(self, stage: str, otherwise: Callable[[], object] | None = None) -> _Stage:
        """A context: an error inside leaves it out; `otherwise` is called where one did."""
        return _Stage(self, stage, otherwise)

    def left_out(self, stage: str, error: BaseException) -> bool:
        """Take note of an error; whether the request goes on without the stage."""
        if self.strict or not isinstance(error, Exception) or _is_asked_wrongly(error):
            return False
        kind = type(error).__name__
        self.counts[stage, kind] += 1
        self._timing.tell(Took("left_out", 0.0, error=f"{stage}: {kind}"))
        if self.counts[stage, kind] == 1:
            # Not the error's message: it may quote what is stored.
            LOG.warning(
                "memory failed at %r and was left out of the answer: %s at %s; counted in "
                "memory.stats()['failures'], not logged again; strict=True raises it",
                stage, kind, raised_at(error),
            )  # fmt: skip
        return True

    def stats(self) -> dict[str, dict[str, int]]:
        """How often each stage failed, by the name of the error; stages that did not are left out.

        Text, names of sessions and messages of errors are not in it.
        """
        found: dict[str, dict[str, int]] = {}
        for (stage, kind), times in sorted(self.counts.items()):
            found.setdefault(stage, {})[kind] = times
        return found


class _Stage:
    """One stage of one request."""

    __slots__ = ("_failures", "_otherwise", "_stage")

    def __init__(
        self, failures: Failures, stage: str, otherwise: Callable[[], object] | None
    ) -> None:
        self._failures, self._stage, self._otherwise = failures, stage, otherwise

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is None or not self._failures.left_out(self._stage, error):
            return False
        if self._otherwise is not None:
            self._otherwise()
        return True


def _is_asked_wrongly(error: Exception) -> bool:
    """Whether it says that a caller is to do something else, or whose memory cannot be told."""
    return isinstance(error, CMRError) and not isinstance(error, StoreError | NonFiniteStateError)


def raised_in(error: BaseException, *functions: Any) -> bool:
    """Whether an error came out of one of these functions, which call nothing of the model's."""
    wanted: set[CodeType] = {function.__code__ for function in functions}
    return any(code in wanted for code in codes_of(error))
