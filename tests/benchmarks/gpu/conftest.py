"""A GPU that is not there, and rows that go into a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.shared import rows
from tests.benchmarks.gpu.fake import Fake


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the rows of this test go."""
    monkeypatch.setattr(rows, "into", tmp_path)
    monkeypatch.setattr(rows, "written", [])
    return tmp_path
