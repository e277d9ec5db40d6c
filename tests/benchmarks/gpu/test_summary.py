"""The words at the end follow from the rows."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.summary import lines

GPU = {"device": "cuda", "device_name": "NVIDIA H100", "backend": "triton (x)", "tiny": False}


def row(part: str, job: str, outcome: str = "ok", **more: Any) -> dict[str, Any]:
    return {**GPU, "part": part, "job": job, "outcome": outcome, **more}


def said(*rows: dict[str, Any]) -> str:
    return "\n".join(lines(rows))


def test_a_cpu_is_never_called_a_gpu() -> None:
    one = {**row("checks", "a"), "device": "cpu", "device_name": "EPYC", "backend": "reference"}
    assert lines([one])[0].startswith("Nothing here ran on a GPU: EPYC, reference.")
    assert lines([row("checks", "a")])[0] == "Ran on NVIDIA H100, kernels: triton (x)."
    assert lines([]) == ["Nothing was measured."]


def test_what_does_not_hold_comes_first() -> None:
    found = [row("checks", f"c{n}", "failed") for n in range(7)]
    text = said(row("checks", "a"), *found, row("checks", "d", "died", said="exit code -6"))
    assert "Checks: 1 of 9 hold, 8 do not." in text
    assert "no speed counts before: c0, c1, c2, c3, c4 and 3 more" in text
    assert "Not measured: checks: exit code -6." in text


def test_spills_and_what_does_not_compile() -> None:
    text = said(row("compile", "a", spills=8), row("compile", "b", spills=0),
                row("compile", "c", "failed"))  # fmt: skip
    assert "These spill registers with this Triton: a." in text
    assert "These do not compile: c." in text


def test_operations_far_from_their_floor_or_behind_pytorch() -> None:
    text = said(
        row("operations", "near", times_floor=1.2, torch_over_cmr=2.0),
        row("operations", "far", times_floor=9.0, torch_over_cmr=2.0),
        row("operations", "slow", times_floor=2.0, torch_over_cmr=0.5),
    )
    assert "3 timed with a cold cache; 1 take more than 3 times their floor: far (9.0);" in text
    assert "PyTorch is faster in 1: slow." in text and "Nsight Compute" in text


def test_steps_are_held_against_the_model_alone() -> None:
    def step(stored: int | None, mean: float, worst: float, batch: int = 1) -> dict[str, Any]:
        about = {"model": "m", "stored": stored, "batch": batch}
        return row("step", f"m {stored}", **about, mean_ms=mean, worst_ms=worst)

    counted = row("step", "m counted", of_a_step={"waits": 2, "launches": 9})
    text = said(step(None, 10.0, 11.0), step(0, 10.1, 11.0), step(4000, 10.5, 21.0), counted,
                step(4000, 9.0, 9.0, batch=32))  # fmt: skip
    assert "m with 4,000 stored, batch 1: 1.05." in text, "nothing to hold batch 32 against"
    assert "The worst step is more than 1.5 times the mean in: m 4000." in text
    assert "waits for the device in a plain step: m counted." in text


def test_reading_and_what_was_left_out() -> None:
    text = said(
        row("reading", "m", model="m", ratio={"p50": 0.91}),
        row("step", "2 jobs", "left out", said="out of time"),
        row("step", "8b", "not here", said="21 GB needed"),
        row("checks", "one device", "not here", said="one device alone"),
    )
    assert "Reading: m at 0.91 of its own forward." in text
    assert "Not measured: step: out of time; step: 21 GB needed." in text
