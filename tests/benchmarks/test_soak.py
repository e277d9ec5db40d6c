"""The soak with faults: nothing is wrong with a memory, and what would be wrong is seen."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.halfway import soak
from benchmarks.shared import rows
from cmr.integration.requests.failures import Failures

WORDS = ["--tiny", "--tokens", "4000"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rows, "into", tmp_path)
    monkeypatch.setattr(soak, "PARTS", 3)
    monkeypatch.setattr(
        soak, "TIERS", {"budget": 1_024, "working_budget": 1_024, "long_term_budget": 1_024}
    )


def row(tmp_path: Path) -> dict[str, Any]:
    [found] = rows.load("soak", tmp_path)
    return found


def test_all_faults_are_answered_counted_and_leave_nothing(tmp_path: Path) -> None:
    assert soak.main([*WORDS, "--results", str(tmp_path)]) == 0
    found = row(tmp_path)
    assert found["wrong"] == [] and found["tokens"] == 4_000
    assert set(found["counted"]) == {
        "read: NonFiniteStateError", "read: OSError", "read: OutOfMemoryError",
        "search: LookupError", "store: OSError",
    }  # fmt: skip
    assert all(times >= 3 for times in found["counted"].values())
    assert found["faults"] == 15 and len(found["parts"]) == 3
    assert found["parts"][-1]["evicted_blocks"] > 0, "the last tier never was full"
    assert found["resident_bytes_last_to_first"] > 0
    assert tempfile.gettempdir() not in json.dumps(found), "a row says where it was measured"


def test_a_store_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def for_good(own: soak.Soak) -> Iterator[None]:
        ring = own.memory._core.ring
        ring.parts[0][f"keys.{next(iter(ring.keys))}"][0].add_(1.0)
        yield

    monkeypatch.setattr(soak.Soak, "damaged", for_good)
    assert soak.main([*WORDS, "--results", str(tmp_path)]) == 1
    assert "part 1: states are no numbers: the store changed" in row(tmp_path)["wrong"]


def test_a_failure_that_is_not_counted_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Failures, "stats", lambda _: {})
    assert soak.main([*WORDS, "--results", str(tmp_path)]) == 1
    assert "part 1: out of memory: counted {}" in row(tmp_path)["wrong"]
