"""What a server's `/metrics` says, as numbers, and what happened between two looks."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from cmr.cli.errors import UsageError
from cmr.cli.talk.server import Server

Labels = tuple[tuple[str, str], ...]
LIMIT = 1 << 22
"""Bytes of a page at most: a server of ours sends a few thousand."""


class Figures:
    """The numbers of one page, by name and labels."""

    def __init__(self, values: dict[tuple[str, Labels], float]) -> None:
        self.values = values

    @classmethod
    def parse(cls, page: str) -> Figures:
        """Those of a page; raises `UsageError` for what is none of a server of ours."""
        try:
            found = {
                (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
                for family in text_string_to_metric_families(page)
                for sample in family.samples
            }
        except (ValueError, KeyError, IndexError, TypeError):
            found = {}
        if not any(name == "cmr_stored_tokens" for name, _ in found):
            raise UsageError("a page of figures of `cmr serve` expected, got another one")
        return cls(found)

    def __sub__(self, before: Figures) -> Figures:
        """What was added since; of a server that began anew meanwhile all of it."""
        return Figures({
            key: value - before.values.get(key, 0.0) if value >= before.values.get(key, 0.0)
            else value
            for key, value in self.values.items()
        })  # fmt: skip

    def get(self, name: str, **labels: str) -> float:
        """One number, 0 where it is not there."""
        return self.values.get((name, tuple(sorted(labels.items()))), 0.0)

    def all(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """All numbers of a name with their labels."""
        for (other, labels), value in self.values.items():
            if other == name:
                yield dict(labels), value

    def sum(self, name: str) -> float:
        """All numbers of a name together."""
        return sum(value for _, value in self.all(name))

    def percentile(self, name: str, share: float, **labels: str) -> float | None:
        """The bound of the bucket that a share of a histogram's values lies below; None: of none.

        Infinite above the last bound.
        """
        buckets = sorted(
            (float(its["le"]), value)
            for its, value in self.all(f"{name}_bucket")
            if {**its, **labels} == its
        )
        count = buckets[-1][1] if buckets else 0.0
        if count <= 0:
            return None
        return next((bound for bound, value in buckets if value >= share * count), math.inf)


def fetch(url: str) -> Figures:
    """The figures of a server, by the key of the environment where one is needed.

    Raises `UsageError` where nobody answers, or it is none of ours, or the key is not taken.
    """
    return Figures.parse(Server(url, "").page("/metrics", LIMIT, 10.0).decode("utf-8", "replace"))
