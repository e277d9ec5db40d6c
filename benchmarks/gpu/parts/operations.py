"""Each operation with a cold cache, beside its floor and beside PyTorch.

The cases are those of `benchmarks/ops`: both sides agree before one of them is timed. On a GPU a
call is captured as a graph and replayed, so that Python has no part in its time, and the cache is
filled with something else before each replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.compiled.roofline import LAUNCH_US, Floor
from benchmarks.gpu.log import Job, Run
from benchmarks.gpu.parts import bandwidth
from benchmarks.ops import (
    bench_attention,
    bench_calls,
    bench_cosine_topk,
    bench_maxsim,
    bench_reweave,
    bench_ring_write,
    bench_score,
)
from benchmarks.ops.measure import SIDES
from benchmarks.shared.device import Call, Processor
from benchmarks.shared.stats import quantiles

ROUNDS, TINY_ROUNDS = 50, 2


class Case(NamedTuple):
    """A benchmark of `benchmarks/ops` and its arguments, on a GPU and small."""

    bench: Callable[..., None]
    sizes: tuple[dict[str, Any], ...]
    tiny: dict[str, Any]


SMALL, LARGE = ({"heads": a, "groups": b, "width": c} for a, b, c in ((9, 3, 64), (32, 8, 128)))
HEADS = {"heads": 4, "groups": 2, "width": 16}
CASES = (
    Case(
        bench_score.test_state_scores,
        ({"tokens": 4096, "hidden": 576}, {"tokens": 65536, "hidden": 4096}),
        {"tokens": 64, "hidden": 60},
    ),
    Case(bench_score.test_attention_received, (SMALL, LARGE), HEADS),
    Case(bench_score.test_surprise, ({"vocabulary": 128256},), {"vocabulary": 101}),
    Case(
        bench_ring_write.test_keys_and_values,
        ({"tokens": 32, "groups": 8, "width": 128}, {"tokens": 512, "groups": 8, "width": 128}),
        {"tokens": 64, "groups": 2, "width": 16},
    ),
    Case(bench_ring_write.test_index, ({"tokens": 512, "hidden": 4096},),
         {"tokens": 64, "hidden": 60}),
    Case(
        bench_maxsim.test_block_maxima,
        tuple({"queries": q, "stored": 65536, "hidden": h} for h in (576, 4096) for q in (1, 64)),
        {"queries": 3, "stored": 320, "hidden": 60},
    ),
    Case(bench_maxsim.test_select, ({"stored": 65536},), {"stored": 320}),
    Case(bench_cosine_topk.test_cosine_topk,
         tuple({"entries": 65536, "queries": q} for q in (1, 32)), {"entries": 64, "queries": 2}),
    Case(bench_attention.test_prefill, (SMALL, LARGE), HEADS),
    Case(
        bench_attention.test_decode,
        ({**SMALL, "seen": 516}, {**LARGE, "seen": 516}, {**LARGE, "seen": 4096}),
        {**HEADS, "seen": 70},
    ),
    Case(
        bench_reweave.test_layer,
        ({**SMALL, "tokens": 1}, {**LARGE, "tokens": 1}, {**LARGE, "tokens": 512}),
        {**HEADS, "tokens": 1},
    ),
    Case(bench_reweave.test_residual, ({"hidden": 4096},), {"hidden": 60}),
    *(
        Case(bench_calls.test_call, ({"name": bench_calls.named(operation, large=True)},),
             {"name": bench_calls.named(operation, large=False)})
        for operation in bench_calls.OPERATIONS
    ),
)  # fmt: skip


def begin(run: Run) -> None:
    """A row a case."""
    run.do(
        [
            Job(_name(case, sizes), _job(run, case, sizes))
            for case in CASES
            for sizes in ((case.tiny,) if run.tiny else case.sizes)
        ]
    )


class Clock:
    """Stands for pytest-benchmark's fixture and times by the device's own clock.

    Attributes:
        found: times of the last side: `us_cold` and `us_warm` with p20, p50 and p80, how they were
            repeated, and the launches of a call.
        extra_info: what the benchmark says of the case.
    """

    enabled = False

    def __init__(self, device: Processor, rounds: int) -> None:
        self._device, self._rounds = device, rounds
        self.extra_info: dict[str, Any] = {}
        self.found: dict[str, Any] = {}

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> None:
        # On a GPU a benchmark hands over what waits for the device, and with it the side itself.
        side: Call = arguments[0] if arguments else call
        replay, how = side, "call"
        try:
            replay, how, _ = self._device.captured(side)
        except RuntimeError as error:  # what asks the device something cannot be captured
            how = f"call, as it cannot be captured: {str(error).splitlines()[0]}"[:160]
            self._device.synchronise()
        replay()
        cold = self._device.each(replay, self._rounds, self._device.flush)
        warm = self._device.each(replay, self._rounds)
        self.found = {
            "us_cold": _microseconds(cold),
            "us_warm": _microseconds(warm),
            "by": how,
            "launches": self._device.launches(side),
        }


def _name(case: Case, sizes: dict[str, Any]) -> str:
    name = case.bench.__name__.removeprefix("test_")
    if name == "call":
        return str(sizes["name"])
    return " ".join([name, *(f"{key} {value}" for key, value in sizes.items())])


def _job(run: Run, case: Case, sizes: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    def call() -> dict[str, Any]:
        clock = Clock(run.device, TINY_ROUNDS if run.tiny else ROUNDS)
        found: dict[str, Any] = {}
        for by in SIDES:
            case.bench(clock, device=run.device.kind, by=by, **sizes)
            found[by] = clock.found
        about = {key: clock.extra_info[key] for key in ("bytes", "flops")}
        floor = floor_of(run, about["bytes"], about["flops"], found["cmr"]["launches"])
        ours, torch = (found[by]["us_cold"]["p50"] for by in SIDES)
        return {
            **about, **found, "sizes": sizes,
            "floor_us": round(floor.total, 3), "bound": floor.bound,
            "times_floor": round(ours / floor.total, 2), "torch_over_cmr": round(torch / ours, 3),
            "said": f"{ours:.1f} µs, floor {floor.total:.1f}, PyTorch {torch:.1f}",
        }  # fmt: skip

    return call


def floor_of(run: Run, moved: int, flops: int, launches: int | None) -> Floor:
    """The least time of a call by the model of `docs/gpu-model.md`, at the measured bandwidth.

    Arithmetic counts at the matrix units' peak where the GPU's data sheet is known, and not at all
    where it is not; launches where they were counted.
    """
    sheet = bandwidth.known(run.device.name()) if run.device.kind == "cuda" else None
    return Floor(
        memory=moved / bandwidth.peak(run) / 1e3,
        compute=flops / sheet.matrix / 1e6 if sheet else 0.0,
        launch=LAUNCH_US * (launches or 0),
    )


def _microseconds(seconds: list[float]) -> dict[str, float]:
    return {name: round(1e6 * value, 3) for name, value in quantiles(seconds).items()}
