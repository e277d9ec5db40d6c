"""A clock for tests of saved memories."""

from __future__ import annotations

import pytest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be set."""
    now = [1_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    return now
