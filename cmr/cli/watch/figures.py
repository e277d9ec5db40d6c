"""What a server's `/metrics` says, as numbers, and what happened between two looks."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from cmr.cli.errors import UsageError

Labels = tuple[tuple[str, str], ...]
LIMIT = 1 << 22
"""Bytes of a page at most: a server of ours sends a few thousand."""


class _Stays(urllib.request.HTTPRedirectHandler):
    """A key is shown to the server that was named, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""
        return None


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


def fetch(url: str, key: str | None, timeout: float = 10.0) -> Figures:
    """The figures of a server.

    Args:
        url: of the server, without `/metrics`.
        key: with the scope `metrics`; None: none is needed.
        timeout: seconds.

    Raises:
        UsageError: nobody answers there, or it is none of ours, or the key is not taken.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"URL: http://... or https://... expected, got {url!r}")
    asked = urllib.request.Request(url.rstrip("/") + "/metrics")
    if key:
        asked.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.build_opener(_Stays).open(asked, timeout=timeout) as reply:
            page = reply.read(LIMIT + 1)
    except urllib.error.HTTPError as error:
        hint = ": a key with the scope metrics expected" if error.code in (401, 403) else ""
        raise UsageError(f"{url}: the server replied {error.code}{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(f"{url}: no server answers ({reason})") from None
    if len(page) > LIMIT:
        raise UsageError(f"{url}: at most {LIMIT:,} bytes of figures expected, got more")
    return Figures.parse(page.decode("utf-8", "replace"))
