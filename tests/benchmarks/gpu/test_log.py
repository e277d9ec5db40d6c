"""Rows as they come, jobs that go on after failures, processes that end alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import apart
from benchmarks.gpu.apart import supervise
from benchmarks.gpu.log import BROKEN, NAME, Broken, Job, Run
from benchmarks.shared import rows
from benchmarks.shared.device import Processor
from tests.gpu.inputs import NotHere

HEAD = {"run": "r1", "device": "cpu"}


def going(seconds: float = 60.0, start: int = 0, device: Processor | None = None) -> Run:
    return Run("checks", device or Processor(), True, seconds, HEAD, start)


def failing() -> dict[str, Any]:
    raise ValueError("it is wrong\nand more")


def not_here() -> dict[str, Any]:
    raise NotHere("one device alone")


JOBS = [
    Job("a", lambda: {"x": 1, "said": "well"}), Job("b", failing), Job("c", not_here),
    Job("d", lambda: {}),
]  # fmt: skip


def written(place: Path) -> list[dict[str, Any]]:
    return rows.load(NAME, place)


def test_what_fails_stops_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = going().do(JOBS)
    found = written(place)
    assert [(row["job"], row["number"], row["outcome"]) for row in found] == [
        ("a", 0, "ok"), ("b", 1, "failed"), ("c", 2, "not here"), ("d", 3, "ok"),
    ]  # fmt: skip
    assert found[0]["x"] == 1 and found[1]["said"] == "ValueError: it is wrong"
    assert all(row["run"] == "r1" and row["part"] == "checks" for row in found)
    assert count == {"ok": 2, "failed": 1, "not here": 1}
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "checks      a: well" and "one device alone" in said[2]


def test_a_row_is_there_before_the_next_job_begins(place: Path) -> None:
    seen: list[int] = []
    jobs = [Job(str(n), lambda: {"n": seen.append(len(written(place)))}) for n in range(1, 3)]
    going().do([Job("0", lambda: {}), *jobs])
    assert seen == [1, 2]


def test_quiet_tells_of_failures_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    going().do(JOBS, quiet=True)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["b:"]
    assert len(written(place)) == 4


def test_what_is_left_out_for_time_is_a_row(place: Path) -> None:
    run = going()
    late = [Job("a", lambda: {"x": setattr(run, "_until", 0.0)}), *JOBS[1:]]
    run.do(late)
    last = written(place)[-1]
    assert (last["outcome"], last["why"], last["jobs"]) == ("left out", "out of time", [*"bcd"])
    assert len(written(place)) == 2


def test_another_process_begins_behind_what_was_done(place: Path) -> None:
    going(start=3).do(JOBS)
    assert [row["job"] for row in written(place)] == ["d"]


def test_a_broken_device_ends_the_process_with_its_row_written(place: Path) -> None:
    class Gone(Processor):
        def healthy(self) -> bool:
            return False

    with pytest.raises(Broken) as error:
        going(device=Gone()).do(JOBS)
    assert error.value.number == 1
    assert [row["job"] for row in written(place)] == ["a", "b"]


def child(body: str) -> Callable[[int, float], Sequence[str]]:
    """A process that knows `start` and can `row(number)`."""
    file = str(rows.into / f"{NAME}.jsonl")
    head = f"""
import json, os, sys, time
start = int(sys.argv[1])
def row(number, outcome="ok"):
    found = dict({json.dumps(HEAD)}, part="checks", job=str(number), number=number, outcome=outcome)
    with open({file!r}, "a") as file:
        file.write(json.dumps(found) + "\\n")
"""
    return lambda start, left: [sys.executable, "-S", "-c", head + body, str(start)]


def numbers(place: Path) -> list[tuple[int, str]]:
    return [(row.get("number", -1), row["outcome"]) for row in written(place)]


def test_a_process_that_does_all(place: Path) -> None:
    supervise(going(), "r1", child("[row(n) for n in range(start, 3)]"))
    assert numbers(place) == [(0, "ok"), (1, "ok"), (2, "ok")]


def test_a_device_that_breaks_is_taken_up_behind_the_job(place: Path) -> None:
    body = f"""
for n in range(start, 3):
    row(n, "failed" if n == 1 else "ok")
    if n == 1: sys.exit({BROKEN})
"""
    supervise(going(), "r1", child(body))
    assert numbers(place) == [(0, "ok"), (1, "failed"), (2, "ok")]


def test_a_process_that_dies_in_a_job(place: Path) -> None:
    body = """
for n in range(start, 3):
    if n == 1: os.abort()
    row(n)
"""
    supervise(going(), "r1", child(body))
    assert numbers(place) == [(0, "ok"), (1, "died"), (2, "ok")]
    assert written(place)[1]["said"] == "exit code -6"


def test_a_process_that_hangs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "STALL", 1.0)
    monkeypatch.setattr(apart, "TURN", 0.02)
    body = """
for n in range(start, 3):
    if n == 1: time.sleep(100)
    row(n)
"""
    supervise(going(), "r1", child(body))
    assert numbers(place) == [(0, "ok"), (1, "died"), (2, "ok")]
    assert "silent for 1 seconds" in written(place)[1]["said"]


def test_processes_that_find_nothing_are_given_up(place: Path) -> None:
    supervise(going(), "r1", child("sys.exit(3)"))
    assert [outcome for _, outcome in numbers(place)] == ["died"] * 3 + ["left out"]
    assert written(place)[-1]["why"] == "3 processes found nothing"


def test_no_process_is_begun_without_time(place: Path) -> None:
    supervise(going(seconds=1.0), "r1", child("row(0)"))
    assert numbers(place) == [(-1, "left out")]


def test_only_the_rows_of_the_run_and_part_count(place: Path) -> None:
    for run, part, number in (("r1", "checks", 4), ("r2", "checks", 9), ("r1", "step", 8)):
        rows.append(NAME, {"run": run, "part": part, "number": number})
    assert apart.last_number("r1", "checks") == 4
    assert apart.last_number("r1", "reading") == -1
