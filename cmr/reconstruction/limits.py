"""How many memory tokens may be read."""

from __future__ import annotations

from dataclasses import dataclass

from cmr.config import checks as check


@dataclass(frozen=True)
class Limits(check.Checked):
    """The most memory tokens that are read at once: a number, a share in (0, 1], or both."""

    max_memory_tokens: int | None = check.setting(None, check.integer, 1)
    compression_ratio: float | None = check.setting(None, check.share)

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self.max_memory_tokens is not None or self.compression_ratio is not None

    def of(self, recalled: int) -> int:
        """How many of that many recalled tokens may be read: the smaller limit, rounded down."""
        most = recalled
        if self.compression_ratio is not None:
            # 0.29 * 100 is 28.999...: what is a whole number but for rounding is meant as one. A
            # share of little is one token at least, so that what was recalled is never lost.
            most = max(1, int(self.compression_ratio * recalled + 1e-9))
        if self.max_memory_tokens is not None:
            most = min(most, self.max_memory_tokens)
        return min(most, recalled)
