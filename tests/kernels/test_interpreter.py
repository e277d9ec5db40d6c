"""The Triton kernels against their specifications, interpreted, on each version of Triton here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

Run = tuple[subprocess.Popen[bytes], Path]

HERE = Path(__file__).parent
SECOND = Path(sys.prefix) / "triton-3.9"
"""Where the README's test command puts a second version of Triton, beside the installed one."""


VERSIONS = ("3.7", "3.9")

pytestmark = pytest.mark.timeout(1200)


def start(version: str, output: Path) -> subprocess.Popen[bytes]:
    """Runs the folder `interpreted` in a process of its own, under that version of Triton."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "CMR_KERNELS": "triton",
        "CMR_EXPECTED_TRITON": version,
        "OMP_NUM_THREADS": "1",
    }
    if version == "3.9":
        paths = [str(SECOND), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(HERE / "interpreted"), str(HERE / "interpreted" / "version.py")]
    with output.open("wb") as file:
        return subprocess.Popen(
            command, cwd=HERE.parents[1], env=environment, stdout=file, stderr=subprocess.STDOUT
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """A run for each version that is here, side by side: each keeps one core busy."""
    folder = tmp_path_factory.mktemp("interpreted")
    started: dict[str, Run] = {}
    for version in VERSIONS:
        if version != "3.9" or SECOND.is_dir():
            output = folder / f"{version}.txt"
            started[version] = start(version, output), output
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("version", VERSIONS)
def test_interpreted(runs: dict[str, Run], version: str) -> None:
    if version not in runs:
        pytest.skip(f"no second Triton in {SECOND.name}: the README's test command installs it")
    process, output = runs[version]
    code = process.wait()
    said = output.read_text(errors="replace")
    assert code == 0, said[-8000:]
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) > 250, said[-2000:]
    assert "skipped" not in said, said[-2000:]
