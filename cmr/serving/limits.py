"""How much one tenant may ask: requests a minute, and at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cmr.serving.refusals import Refusal


@dataclass
class _Used:
    """What a tenant has left: requests that it may make now, counted at a time."""

    left: float
    at: float
    under_way: int = 0


class Limits:
    """Counts each tenant's requests by themselves, so that none takes what is another's.

    Args:
        rate: requests a minute; None: any number. A minute's worth may come at once.
        at_once: requests under way, waiting ones with them; None: any number.
    """

    def __init__(self, rate: int | None, at_once: int | None) -> None:
        self._rate, self._at_once = rate, at_once
        self._lock, self._used = threading.Lock(), dict[str, _Used]()

    @contextmanager
    def request(self, tenant: str) -> Iterator[None]:
        """One request of a tenant is under way inside; raises `Refusal` (429) for one too many."""
        used = self._enter(tenant)
        try:
            yield
        finally:
            with self._lock:
                used.under_way -= 1

    def _enter(self, tenant: str) -> _Used:
        now = time.monotonic()
        with self._lock:
            # There are as many tenants as the file of keys names: nobody can make it grow.
            used = self._used.setdefault(tenant, _Used(float(self._rate or 0), now))
            if self._at_once is not None and used.under_way >= self._at_once:
                raise Refusal(429, "too_many_at_once",
                              f"at most {self._at_once} requests at once", 1)  # fmt: skip
            if self._rate is not None:
                a_second = self._rate / 60
                used.left = min(self._rate, used.left + (now - used.at) * a_second)
                used.at = now
                if used.left < 1:
                    raise Refusal(429, "rate", f"at most {self._rate} requests a minute",
                                  math.ceil((1 - used.left) / a_second))  # fmt: skip
                used.left -= 1
            used.under_way += 1
            return used
