"""The model of what the kernels would take: its arithmetic, and the page in step with the code."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")  # the cases are those of its host functions

from benchmarks.compiled import roofline, table
from benchmarks.compiled.cases._case import Case
from benchmarks.compiled.roofline import DEVICES, Device, by_case, floor, generated

MADE_UP = Device("made up", "sm_80", bandwidth=2.0, matrix=100.0, vector=10.0, processors=1)


def case(name: str = "x.y/z", **more: Any) -> Case:
    known: dict[str, Any] = {"launches": 1, "bytes": 20_000_000, "flops": 10**9}
    return Case(name, lambda: None, **{**known, **more})


def row(target: str = "sm_80", **more: Any) -> dict[str, Any]:
    return {
        "case": "x.y/z", "target": target, "triton": "0", "kernel": "k", "grid": [3, 4],
        "warps": 4, "shared": 2048, "registers": 40, "stack": 0, "spills": 0, "occupancy": 0.5,
        "matrix": {}, "wide_loads": 0, "instructions": 9, **more,
    }  # fmt: skip


def test_the_floor_is_the_longer_of_memory_and_arithmetic_and_the_launches() -> None:
    found = floor(case(), MADE_UP, by_case([row()]))
    assert (found.memory, found.compute) == pytest.approx((10.0, 100.0))  # 20 MB, 1 GFLOP
    assert found.total == pytest.approx(100.0 + roofline.LAUNCH_US)
    assert found.bound == "compute"


@pytest.mark.parametrize(
    ("matrix", "microseconds"), [({}, 100.0), ({"HMMA": 8}, 10.0), ({"IMMA": 8}, 5.0)]
)
def test_the_peak_is_that_of_the_units_in_the_compiled_code(
    matrix: dict[str, int], microseconds: float
) -> None:
    found = floor(case(), MADE_UP, by_case([row(matrix=matrix)]))
    assert found.compute == pytest.approx(microseconds)


def test_what_binds() -> None:
    rows = by_case([row()])
    assert floor(case(flops=0), MADE_UP, rows).bound == "memory"
    assert floor(case(flops=0, bytes=1), MADE_UP, rows).bound == "launch"


def test_a_case_that_is_not_in_the_table_is_named() -> None:
    page = generated({"x.y/z": case(matrix=("k",))}, by_case([]))
    assert "| `x.y/z` | not in the table |" in page
    assert floor(case(matrix=("k",)), MADE_UP, {}).compute == pytest.approx(10.0)


def test_one_figure_where_all_architectures_agree() -> None:
    rows = by_case([row(), row("sm_90", registers=50), row("gfx942", occupancy=None)])
    page = generated({"x.y/z": case()}, rows)
    assert "| `x.y/z` | `k` | 12 | 40 / 50 / 40 | 2 | 50% / 50% / n/a | none |" in page


def test_the_part_between_the_marks_is_replaced() -> None:
    page = f"before\n{roofline.BEGIN}\nold\n{roofline.END}\nafter"
    part = generated({}, {})
    assert roofline.replaced(page, part) == f"before\n{part}\nafter"
    with pytest.raises(ValueError, match="marks"):
        roofline.replaced("no marks", part)


def test_the_page_is_in_step_with_the_table_and_the_cases() -> None:
    page = roofline.PAGE.read_text(encoding="utf-8")
    assert roofline.replaced(page, roofline.current()) == page, (
        "run python -m benchmarks.compiled.roofline"
    )


def test_a_decode_step_is_made_of_cases_that_exist() -> None:
    from benchmarks.compiled.cases import all_cases

    assert roofline.missing(all_cases()) == []


def test_a_decode_step_adds_its_layers_and_a_share_of_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up = roofline.Step("m", 10, ("x.y/z", "x.y/z"), ("x.y/z",))
    monkeypatch.setattr(roofline, "STEPS", (made_up,))
    monkeypatch.setattr(roofline, "DEVICES", (MADE_UP,))
    lines = roofline.steps({"x.y/z": case()}, by_case([row()])).splitlines()[2:]
    each = 100.0 + roofline.LAUNCH_US
    assert [line.split(" | ")[2:] for line in lines] == [
        ["2", f"{2 * each:.1f} |"],
        ["20", f"{20 * each:.1f} |"],
        ["1", f"{each:.1f} |"],
        ["", f"{20 * each + each / roofline.REFRESH:.1f} |"],
    ]
    assert "not among the cases: x.y/z" in roofline.steps({}, {})


def test_the_page_says_what_it_is() -> None:
    page = roofline.PAGE.read_text(encoding="utf-8")
    assert "a model, not a measurement" in page.partition("##")[0].lower()
    assert {device.target for device in DEVICES} <= {r["target"] for r in table.read()}
