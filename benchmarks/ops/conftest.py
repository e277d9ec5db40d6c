"""Every benchmark starts from one seed; what is saved says GB/s and the share of the peak."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.ops.measure import with_speed


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run."""
    torch.manual_seed(0)


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Called by pytest-benchmark before it saves: adds what follows from the median."""
    for found in output_json["benchmarks"]:
        about = found["extra_info"]
        if "bytes" in about and "peak_gb_s" in about:
            about.update(with_speed(about, found["stats"]["median"]))
