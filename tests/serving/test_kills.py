"""A server that is killed loses nothing that was told before its last save; in short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.kills import campaign, shared_campaign
from benchmarks.serving.process import save_tiny


@pytest.mark.parametrize("kind", [campaign, shared_campaign])
def test_what_was_told_before_the_last_save_outlives_a_kill(tmp_path: Path, kind: Any) -> None:
    found = kind(save_tiny(tmp_path / "tiny"), tmp_path, 2, seed=3)
    assert [one["open"] for one in found] == [1, 1]
    assert sum(one["told"] for one in found) > sum(one["late"] for one in found)
    for name in ("early", "foreign", "back", "evicted"):
        assert not any(one[name] for one in found), (name, found)
