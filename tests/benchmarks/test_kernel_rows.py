"""Saved benchmarks as rows, and the measured peak that their GB/s are a share of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ops import bandwidth, kernel_rows
from benchmarks.ops.conftest import pytest_benchmark_update_json
from benchmarks.ops.measure import assert_equal_outputs, measure, size
from benchmarks.shared import rows


def saved(**extra: Any) -> dict[str, Any]:
    """What pytest-benchmark writes, as far as rows are made of it: rounds of 1 to 5 ms."""
    data = [0.001, 0.002, 0.003, 0.004, 0.005]
    about = {"device": "cpu", "bytes": 6_000_000, "peak_gb_s": 10.0, "by": "cmr", **extra}
    stats = {"median": 0.003, "rounds": 5, "iterations": 2, "data": data}
    case = {"name": "test_x[cmr]", "fullname": "f::test_x[cmr]", "extra_info": about}
    return {
        "datetime": "2026-01-01T00:00:00+00:00",
        "machine_info": {"python_version": "3.11"},
        "benchmarks": [{**case, "stats": stats}],
    }


def test_a_row_has_quantiles_and_its_share_of_the_peak() -> None:
    (row,) = kernel_rows.rows_of(saved())
    assert (row["us_p20"], row["us_p50"], row["us_p80"]) == (1800.0, 3000.0, 4200.0)
    assert (row["gb_s"], row["share_of_peak"]) == (2.0, 0.2)  # 6 MB in 3 ms
    assert (row["rounds"], row["calls_a_round"], row["by"]) == (5, 2, "cmr")


def test_the_saved_file_says_gb_s_too() -> None:
    output = saved()
    pytest_benchmark_update_json(None, None, output)
    assert output["benchmarks"][0]["extra_info"]["share_of_peak"] == 0.2
    bare = saved()
    del bare["benchmarks"][0]["extra_info"]["bytes"]
    pytest_benchmark_update_json(None, None, bare)
    assert "gb_s" not in bare["benchmarks"][0]["extra_info"]


def test_a_summary_without_rounds_makes_no_row() -> None:
    summary = saved()
    del summary["benchmarks"][0]["stats"]["data"]
    with pytest.raises(ValueError, match="single rounds expected"):
        kernel_rows.rows_of(summary)


def test_the_command_appends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "into", rows.into)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(saved()))
    kernel_rows.main([str(file), "--results", str(tmp_path)])
    kernel_rows.main([str(file), "--results", str(tmp_path)])
    assert len(rows.load(kernel_rows.NAME, tmp_path)) == 2
    assert "20.0%" in capsys.readouterr().out


def test_the_measured_peak_is_that_of_its_best_pass() -> None:
    found = bandwidth.peak("cpu", mib=8, rounds=3)
    assert found["peak"] == max(found["read"], found["product"], found["copy"]) > 0.05
    assert bandwidth.peak("cpu", mib=8, rounds=3) is found, "measured once a process"


class Fixture:
    """Stands for pytest-benchmark's fixture: calls once, notes what it was told."""

    enabled = False

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.ran: list[Any] = []

    def __call__(self, call: Any) -> None:
        self.ran.append(call())


def test_nothing_is_timed_unless_outputs_agree() -> None:
    x = torch.arange(1.0, 5.0)
    about: dict[str, Any] = {"device": "cpu", "moved": size(x)}
    fixture = Fixture()
    with pytest.raises(AssertionError, match="0: worst at"):
        measure(fixture, "cmr", {"cmr": lambda: x, "plain": lambda: 1.02 * x}, **about)
    assert fixture.ran == []
    measure(fixture, "plain", {"cmr": lambda: x, "plain": lambda: 1.005 * x}, **about)
    assert len(fixture.ran) == 1
    assert fixture.extra_info == {"by": "plain", "bytes": 16, "flops": 0}


def test_a_side_that_writes_in_place_is_compared_with_what_was_before() -> None:
    x = torch.zeros(3)

    def write(value: float) -> torch.Tensor:
        return x.fill_(value)

    with pytest.raises(AssertionError, match="worst at"):
        measure(
            Fixture(), "cmr", {"cmr": lambda: write(1.0), "plain": lambda: write(2.0)},
            device="cpu", moved=12,
        )  # fmt: skip


def test_outputs_must_be_as_many() -> None:
    one = torch.ones(1)
    with pytest.raises(AssertionError, match="1 outputs, not 2"):
        assert_equal_outputs(one, (one, one))
