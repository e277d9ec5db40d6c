"""Saves killed at any moment leave the last complete memory, or the new one, whole."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

STEPS = {"open", "write", "fsync", "close", "rename", "replace", "unlink", "mkdir", "rmdir"}


def test_a_killed_save_leaves_a_complete_memory(tmp_path: Path) -> None:
    """At each step of a save and of forgetting, and at random moments of many saves."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.memory.store.killing", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Error" not in done.stderr, done.stderr[-2000:]
    report = {name: Counter(counts) for name, counts in json.loads(done.stdout).items()}
    kills = [counts for name, counts in report.items() if "outcomes" not in name]
    for counts in kills:
        assert set(counts) >= STEPS  # every step was hit
    assert sum(sum(counts.values()) for counts in kills) >= 200
    assert sum(counts["random"] for counts in kills) >= 100
    for name, counts in report.items():
        if "outcomes" in name:
            # Kills before and after the moment at which a save takes effect.
            assert counts["old"] >= 5 and counts["new"] >= 2


def test_a_killed_process_leaves_no_forgotten_text(tmp_path: Path) -> None:
    """Of a whole memory with its tiers: saves, forgets and loads, and what a plain account says."""
    command = [sys.executable, "-m", "benchmarks.halfway.kills", "--kills", "20"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path), "--results", str(tmp_path / "rows")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows" / "kills.jsonl").open()]
    assert sum(row["kills"] for row in rows) == 20
    # Before and after the moment at which something takes effect.
    assert sum(row["old"] for row in rows) >= 2 and sum(row["new"] for row in rows) >= 2
