"""The regression gate as `docs/profiling.md` has it: an equal run passes, a slower one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = """
import os, time

def test_wait(benchmark):
    benchmark.pedantic(time.sleep, args=(float(os.environ["WAIT"]),), rounds=5)
"""
GATE = ("--benchmark-compare=0001", "--benchmark-compare-fail=median:25%")

ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""Other plugins import much and have no part in this."""


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "bench_wait.py").write_text(BENCH)
    known = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST")}

    def start(wait: float, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-p", "pytest_benchmark.plugin",
                "--rootdir", str(tmp_path), "-c", os.devnull, "bench_wait.py",
                f"--benchmark-storage=file://{tmp_path / 'kept'}", *words,
            ],
            cwd=tmp_path, env={**known, **ALONE, "WAIT": str(wait)}, capture_output=True, text=True,
        )  # fmt: skip

    return start


def test_the_gate(run, tmp_path: Path) -> None:
    first = run(0.03, "--benchmark-save=before")
    assert first.returncode == 0, first.stdout + first.stderr
    assert list((tmp_path / "kept").rglob("0001_before.json"))
    equal = run(0.03, *GATE)
    assert equal.returncode == 0, equal.stdout + equal.stderr
    slower = run(0.06, *GATE)
    said = slower.stdout + slower.stderr
    assert slower.returncode != 0, said
    assert "Performance has regressed" in said and "test_wait" in said


def test_the_page_has_the_commands() -> None:
    page = (Path(__file__).parents[2] / "docs" / "profiling.md").read_text(encoding="utf-8")
    assert " ".join(GATE) in page
    assert "--benchmark-save=before" in page
