"""The Triton kernels against their specifications, interpreted, on each version of Triton here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECOND = Path(sys.prefix) / "triton-3.9"
"""Where the README's test command puts a second version of Triton, beside the installed one."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["3.7", "3.9"])
def test_interpreted(version: str) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "CMR_KERNELS": "triton",
        "CMR_EXPECTED_TRITON": version,
        "OMP_NUM_THREADS": "1",
    }
    if version == "3.9":
        if not SECOND.is_dir():
            pytest.skip(f"no second Triton in {SECOND.name}: the README's test command installs it")
        paths = [str(SECOND), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(HERE / "interpreted"), str(HERE / "interpreted" / "version.py")],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 40, done.stdout[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]
